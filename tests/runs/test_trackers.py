import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from run_files import SPEC, write

from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.pair_scores import Composition, Scores
from diffusion_classifier.runs.summary import summarize
from diffusion_classifier.runs.trackers import check_tracker, log_run, numbers


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "mine", range(3), replace(SPEC, num_images=3))
    return tmp_path / "mine"


class Calls(list):
    """A client that notes what it is asked for."""

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.append((name, arguments, options))
            return self

        return call

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.append(("end", (), {}))

    @property
    def summary(self):
        return self


def test_scores_of_pairs_are_logged(run):
    scores = Scores(4, {"text": (0.5, 0.2, 0.8)}, {"text": 0.25})
    found = numbers(replace(summarize(run), composition=Composition(True, scores, {})))
    assert (found["text"], found["text_low"], found["text_high"]) == (0.5, 0.2, 0.8)


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_what_is_logged(run, tracker, monkeypatch):
    """Against the calls that both clients document; both were tried by hand."""
    calls = Calls()
    monkeypatch.setitem(sys.modules, tracker, calls)
    summary = summarize(run)
    log_run(tracker, run, summary)
    names = [name for name, *_ in calls]
    if tracker == "mlflow":
        assert names == ["set_experiment", "start_run", "log_params", "log_params", "log_metrics", "end"]
        logged, params = calls[4][1][0], calls[2][1][0]
        assert params["strategy"] == '"fixed:4"'
        assert all(len(value) <= 500 for value in params.values())
    else:
        assert names == ["init", "update", "finish"]
        logged, params = calls[1][1][0], calls[0][2]["config"]
        assert (params["strategy"], params["model"]) == ("fixed:4", "m")
    assert logged == numbers(summary)
    assert logged["accuracy"] == summary.accuracy[0]
    assert logged["accuracy_high"] == summary.accuracy[2]
    assert logged["num_done"] == 3


def test_mistakes(run, monkeypatch):
    with pytest.raises(InputError, match="logged to mlflow or wandb; got 'tensorboard'"):
        check_tracker("tensorboard")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="wandb is not installed: pip install wandb"):
        check_tracker("wandb")

    def fail(_):
        raise OSError("no server")

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(set_experiment=fail))
    with pytest.raises(InputError, match=r"mlflow fails, and the run is complete in .*mine: no server"):
        log_run("mlflow", run, summarize(run))
