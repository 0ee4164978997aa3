from dataclasses import replace

import pytest
from commands import save

from diffusion_classifier.app.runs_tab import _compared, _read_run, _rescored
from diffusion_classifier.runs.spec import read_spec


@pytest.fixture
def run(call, model, tmp_path):
    """Of images that nobody labelled."""
    for i in range(4):
        save(tmp_path / "any" / f"{i}.png", 60 + 40 * i, i)
    options = ("--class-names", "dark,grey,light", "--strategy", "fixed:4", "--store-errors", "--device", "cpu")
    assert call("evaluate", tmp_path / "any", "--model", model, *options, "--out", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def test_without_labels_it_is_told_how_many_answers_changed(run):
    spec, before = _read_run(run, with_errors=True)
    now, after = _rescored(run, spec, before, ((1.0,) * 5, 1.0))
    others = sum(a != b for a, b in zip(before["prediction"].to_pylist(), after["prediction"].to_pylist(), strict=True))
    assert _compared(run, now, before, after) == f"{others} of 4 predictions changed."


def test_random_times_within_a_window_differ_from_image_to_image(run):
    spec = read_spec(run)
    assert spec.sees_all
    for times in ("random", "random:0.1-0.9"):
        assert not replace(spec, timesteps=times).sees_all
