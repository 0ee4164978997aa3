import multiprocessing
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluations import NAMES, M, ask, pixels, source
from tolerances import ERRORS, posteriors

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.denoisers import tuning
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import Part, read_rows
from diffusion_classifier.search.shortlists import Gradient
from diffusion_classifier.tasks import TASKS


@pytest.fixture
def classifier(model_folder):
    def make(batch_size=7, model="class-unet"):
        return DiffusionClassifier.from_pretrained(
            model_folder(model), device="cpu", dtype="float32", batch_size=batch_size
        )

    return make


def rows(folder):
    """By id, without what a clock says."""
    return {row["id"]: {k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder).to_pylist()}


OPTIONS = {"strategy": "sequential:8/0.2", "store_errors": True, "weights": "uniform"}


def test_rows_are_what_the_classifier_says(classifier, tmp_path):
    written = list(ask(classifier(), source(), tmp_path / "run", **OPTIONS))
    assert sorted(row.id for row in written) == sorted(source().ids)
    found = rows(tmp_path / "run")
    options = {k: v for k, v in OPTIONS.items() if k != "store_errors"}
    results = classifier().classify([pixels(i) for i in range(M)], NAMES, **options)
    for i, result in enumerate(results):
        row = found[f"{i}.png"]
        assert (row["truth"], row["prediction"], row["status"]) == (NAMES[i % 3], result.label, "done")
        assert row["num_evaluations"] == result.num_evaluations
        torch.testing.assert_close(torch.tensor(row["errors"]), result.errors, equal_nan=True, **ERRORS)
        posterior = torch.tensor(row["posterior"], dtype=torch.float64)
        torch.testing.assert_close(posterior, result.posterior, **posteriors(4 * 8 * 8))
        assert row["timesteps"] == result.t.tolist()
    assert read_spec(tmp_path / "run").class_names == NAMES


@pytest.mark.parametrize("model", ["class-unet", "late-unet", "late-dit"])
@pytest.mark.parametrize("stops", [(1,), (5, 6), (2, 3, 4, 13)])
def test_broken_off_and_gone_on_with_is_the_same_to_the_bit(classifier, tmp_path, stops, model):
    list(ask(classifier(model=model), source(), tmp_path / "whole", **OPTIONS))
    done = 0
    for stop in stops:
        run = ask(classifier(model=model), source(), tmp_path / "run", **OPTIONS)
        for _ in range(stop - done):
            next(run)
        run.close()
        done = stop
    told = []
    list(ask(classifier(model=model), source(), tmp_path / "run", on_start=lambda *a: told.append(a), **OPTIONS))
    assert told == [(stops[-1], M, [])]
    whole, found = rows(tmp_path / "whole"), rows(tmp_path / "run")
    if model != "class-unet":  # into how many batches an image's rows fall depends on the others
        for row in (*whole.values(), *found.values()):
            del row["cost"]
    assert str(found) == str(dict.fromkeys(found) | whole)


def test_parts_make_the_whole(classifier, tmp_path):
    list(ask(classifier(), source(), tmp_path / "whole", **OPTIONS))
    for i in range(3):
        part = Part(i, 3)
        mine = list(ask(classifier(), source(), tmp_path / "run", part=part, **OPTIONS))
        assert {row.id for row in mine} == {f"{j}.png" for j in range(i, M, 3)}
    whole, found = rows(tmp_path / "whole"), rows(tmp_path / "run")
    assert {i: str(row) for i, row in found.items()} == {i: str(row) for i, row in whole.items()}


def test_the_batch_size_is_kept(classifier, tmp_path, monkeypatch):
    """It is a matter of rounding alone, but of that."""
    list(ask(classifier(5), source(), tmp_path / "run", positions=[0, 1], **OPTIONS))
    monkeypatch.setattr("diffusion_classifier.search.scorer.tune", lambda *_: pytest.fail("measured again"))
    list(ask(classifier("auto"), source(), tmp_path / "run", positions=[0, 1], **OPTIONS))
    assert read_spec(tmp_path / "run").batch_size == 5


def test_images_that_cannot_be_read_are_rows_with_a_reason(classifier, tmp_path):
    def read(i):
        return b"no image" if i == 3 else tmp_path / "gone.png" if i == 5 else pixels(i)

    list(ask(classifier(), source(read=read), tmp_path / "run", **OPTIONS))
    found = rows(tmp_path / "run")
    failed = {i: row["reason"] for i, row in found.items() if row["status"] == "failed"}
    assert failed.keys() == {"3.png", "5.png"}
    assert "no such file" in failed["5.png"]
    assert len(found) == M


def test_another_question_in_the_same_folder_is_refused(classifier, tmp_path):
    list(ask(classifier(), source(), tmp_path / "run", positions=[0], **OPTIONS))
    for other, word in (({"seed": 1}, "seed 0 there, 1 now"), ({"loss": "l1"}, 'loss "l2" there, "l1" now')):
        with pytest.raises(InputError, match=word):
            next(ask(classifier(), source(), tmp_path / "run", positions=[0], **OPTIONS, **other))
    with pytest.raises(InputError, match="num_images 1 there, 2 now"):
        next(ask(classifier(), source(), tmp_path / "run", positions=[0, 1], **OPTIONS))
    changed = classifier()
    with torch.no_grad():
        next(changed.denoiser.network.parameters()).add_(0.01)
    with pytest.raises(InputError, match="weights_of_model"):
        next(ask(changed, source(), tmp_path / "run", positions=[0], **OPTIONS))


@pytest.mark.slow
def test_killed_at_random_moments(classifier, tmp_path):
    """Processes of their own, -9: none lost, none doubled, equal to the run that nobody disturbed."""
    context = multiprocessing.get_context("fork")  # processes that need not load the libraries again

    def work(ready):
        clf = classifier()
        ready.set()
        for _ in ask(clf, source(60), tmp_path / "run", **OPTIONS):
            pass

    rng = np.random.default_rng()
    for kill in (True, True, True, False):
        ready = context.Event()
        process = context.Process(target=work, args=(ready,))
        process.start()
        assert ready.wait(60)
        if kill:
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if kill else 0) or (kill and process.exitcode == 0)
    list(ask(classifier(), source(60), tmp_path / "whole", **OPTIONS))
    found = read_rows(tmp_path / "run", ["id"])["id"].to_pylist()
    assert len(found) == len(set(found)) == 60
    assert {i: str(r) for i, r in rows(tmp_path / "run").items()} == {
        i: str(r) for i, r in rows(tmp_path / "whole").items()
    }


def test_the_memory_layout_is_kept_as_well(classifier, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "measure", lambda *_: tuning.Tuning(7, channels_last=True))
    list(ask(classifier("auto"), source(), tmp_path / "whole", **OPTIONS))
    next(iter(ask(classifier("auto"), source(), tmp_path / "run", **OPTIONS)))
    again = classifier("auto")
    assert not again.denoiser.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for _ in ask(again, source(), tmp_path / "run", **OPTIONS):
        assert again.denoiser.network.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    whole, found = rows(tmp_path / "whole"), rows(tmp_path / "run")
    assert {i: str(row) for i, row in found.items()} == {i: str(row) for i, row in whole.items()}


def test_images_that_failed_are_tried_again(classifier, tmp_path):
    folder, asked = tmp_path / "run", []

    def reading(i):
        asked.append(i)
        return b"broken" if len(asked) <= M and i in (1, 4) else pixels(i)

    for turn, failures in enumerate((2, 0, 0)):
        list(ask(classifier(), source(read=reading), folder, **OPTIONS))
        found = read_rows(folder).to_pylist()
        assert len(found) == M
        assert sum(row["status"] == "failed" for row in found) == failures
        assert len(asked) == M + 2 * (turn > 0)
    expected = {row.id: row for row in ask(classifier(), source(), tmp_path / "other", **OPTIONS)}
    assert all(row["posterior"] == expected[row["id"]].posterior for row in found)
    assert len(read_rows(folder, ["posterior"])) == M


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"extra_losses": ("l3",)}, {"extra_losses": ("l1",)}), ({"timesteps": "5000"}, {"timesteps": "500"}),
        ({"shortlist": Gradient(keep=9)}, {"shortlist": None}),
    ],
)  # fmt: skip
def test_what_cannot_be_done_leaves_no_run(classifier, tmp_path, wrong, right):
    with pytest.raises(InputError):
        list(ask(classifier(), source(), tmp_path / "run", **OPTIONS, **wrong))
    assert len(list(ask(classifier(), source(), tmp_path / "run", **OPTIONS, **right))) == M


def test_another_shortlist_is_another_run(classifier, tmp_path):
    images = source(2)
    list(ask(classifier(), images, tmp_path / "run", strategy="fixed:1", shortlist=Gradient(keep=2, num_draws=1)))
    for other in (Gradient(keep=2, num_draws=2), Gradient(keep=3, num_draws=1), None):
        with pytest.raises(InputError, match="holds a run of something else"):
            list(ask(classifier(), images, tmp_path / "run", strategy="fixed:1", shortlist=other))


def test_prompts_are_the_tasks_or_the_data_sets(model_folder, tmp_path):
    clf = DiffusionClassifier.from_pretrained(model_folder("sd-epsilon"), device="cpu", dtype="float32", batch_size=3)
    options = {"strategy": "fixed:1", "positions": [0]}
    for i, (task, given, template, expected) in enumerate(
        [
            (TASKS["stl10"], (), None, ("a photo of a {}.",)),
            (None, ("a {}.", "the {}."), None, ("a {}.",)),
            (None, (), None, None),
            (TASKS["stl10"], ("a {}.",), ["one {}", "two {}"], ("one {}", "two {}")),
        ]
    ):
        images = replace(source(), templates=given)
        list(ask(clf, images, tmp_path / f"{i}", task=task, template=template, **options))
        assert read_spec(tmp_path / f"{i}").templates == expected
