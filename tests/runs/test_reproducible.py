"""An evaluation leaves the classifier that it is given unchanged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import record_rows

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data.captioned import CaptionedSource
from diffusion_classifier.data.labelled import LabelledSource
from diffusion_classifier.denoisers import tuning
from diffusion_classifier.denoisers.flops import shared_share
from diffusion_classifier.runs.evaluation import evaluate
from diffusion_classifier.runs.evaluators import CaptionEvaluator, ClassEvaluator
from diffusion_classifier.runs.store import read_rows
from diffusion_classifier.search.shortlists import Coarse

NAMES = ("cat", "dog", "door")
QUESTION = ClassEvaluator(store_errors=True, options={"strategy": "fixed:3", "weights": "uniform"})


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def source(count=5, read=pixels):
    return LabelledSource("photos", NAMES, (0,) * count, tuple(map(str, range(count))), read)


@pytest.fixture
def load(model_folder):
    def load(model="class-unet", batch_size=7):
        return DiffusionClassifier.from_pretrained(
            model_folder(model), device="cpu", dtype="float32", batch_size=batch_size
        )

    return load


def state(classifier):
    """All that decides how the classifier works: of itself, its model, and the work that rows share."""
    denoiser = classifier.denoiser
    strides = [p.stride() for p in denoiser.network.parameters()]
    share = shared_share(denoiser, denoiser.condition(denoiser.class_names[:1] if denoiser.class_names else ["x"]))
    forwards = {name: "forward" in vars(module) for name, module in denoiser.network.named_modules()}
    return (
        vars(classifier).copy(),
        vars(classifier.scorer).copy(),
        {k: v for k, v in vars(denoiser).items() if not k.startswith("_")},
        (denoiser.channels_last, strides),
        (share, forwards, list(denoiser.prefix._modules)),
    )


def rows_of_first_layer(classifier):
    rows = {}
    network = classifier.denoiser.network
    layer = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    forward = vars(layer).get("forward")
    record_rows(layer, rows, "first")
    classifier.classify([pixels(0)], strategy="fixed:2")
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward
    return rows["first"]


@pytest.mark.parametrize("model", ["class-unet", "late-unet", "late-dit"])
def test_the_classifier_is_as_before(load, tmp_path, model):
    classifier = load(model)
    before, rows = state(classifier), rows_of_first_layer(classifier)
    results = [r.errors for r in classifier.classify([pixels(0)], strategy="fixed:2")]
    assert len(list(evaluate(classifier, source(), tmp_path / "run", QUESTION))) == 5
    assert str(state(classifier)) == str(before)
    assert rows_of_first_layer(classifier) == rows
    for now, then in zip(classifier.classify([pixels(0)], strategy="fixed:2"), results, strict=True):
        assert torch.equal(now.errors, then)


def broken(_):
    raise OSError("the disk is gone")


@pytest.mark.parametrize("ending", ["an error of the source", "an abandoned run", "an error of the network"])
def test_also_if_it_ends_early(load, tmp_path, monkeypatch, ending):
    classifier = load("late-unet")
    before = state(classifier)
    if ending == "an abandoned run":
        rows = evaluate(classifier, source(), tmp_path / "run", QUESTION)
        next(rows)
        assert str(state(classifier)) == str(before)  # between rows, too
        rows.close()
    elif ending == "an error of the source":
        with pytest.raises(OSError, match="the disk is gone"):
            list(evaluate(classifier, source(read=broken), tmp_path / "run", QUESTION))
    else:
        with monkeypatch.context() as patch:
            patch.setattr(type(classifier.denoiser), "forward", broken_forward)
            with pytest.raises(RuntimeError, match="illegal"):
                list(evaluate(classifier, source(), tmp_path / "run", QUESTION))
    assert str(state(classifier)) == str(before)


def broken_forward(*_):
    raise RuntimeError("an illegal instruction")


def test_preparing_a_spec_changes_nothing(load):
    classifier = load()
    before = state(classifier)
    QUESTION.prepare_spec(classifier, source(), [0, 1])
    assert str(state(classifier)) == str(before)


def test_nor_do_captions(model_folder, tmp_path):
    classifier = DiffusionClassifier.from_pretrained(
        model_folder("sd-epsilon"), device="cpu", dtype="float32", batch_size=4
    )
    before = str(state(classifier))
    captions = (("a dog", "a cat"), ("the moon", "a cat"))
    images = CaptionedSource("pictures", ("a", "b"), captions, (0, 1), pixels)
    question = CaptionEvaluator(options={"strategy": "fixed:2"})
    assert len(list(evaluate(classifier, images, tmp_path / "run", question))) == 2
    assert str(state(classifier)) == before


def test_the_layout_and_batch_size_of_a_run_are_for_the_run_alone(load, tmp_path, monkeypatch):
    """They are taken up again with the run, and given back."""
    monkeypatch.setattr("diffusion_classifier.search.scorer.tune", lambda *_: pytest.fail("measured"))
    first = load()
    tuning.set_layout(first.denoiser, True)
    begun = evaluate(first, source(), tmp_path / "run", QUESTION)
    next(begun)
    begun.close()
    assert first.denoiser.channels_last
    again = load(batch_size="auto")
    before, seen = state(again), []
    predict = again.denoiser.predict_noise
    again.denoiser.predict_noise = lambda *a: seen.append((len(a[3]), again.denoiser.channels_last)) or predict(*a)
    assert len(list(evaluate(again, source(), tmp_path / "run", QUESTION))) == 4
    assert set(seen) == {(7, True)}
    del again.denoiser.predict_noise
    assert str(state(again)) == str(before)
    assert (again.scorer.batch_size, again.denoiser.channels_last) == ("auto", False)


@pytest.mark.parametrize(
    ("model", "shortlist"),
    [("class-unet", None), ("late-unet", None), ("class-unet", Coarse(size=8, keep=2, num_draws=2))],
    ids=["shared layers", "shared trunk", "shortlist"],
)
def test_rows_are_bit_exact_whatever_shares_their_batch(load, tmp_path, model, shortlist):
    """Also after other work, and with a shortlist by the same network."""
    question = replace(QUESTION, shortlist=shortlist)
    classifier = load(model)
    together = errors(classifier, tmp_path / "together", question, [0, 1, 2, 3, 4])
    classifier.classify([pixels(9)], strategy="fixed:2")
    for i in range(5):
        alone = errors(classifier, tmp_path / str(i), question, [i])
        assert alone == {str(i): together[str(i)]}


def errors(classifier, folder, question, positions):
    list(evaluate(classifier, source(), folder, question, positions=positions))
    return {row["id"]: str(row["errors"]) for row in read_rows(folder).to_pylist()}
