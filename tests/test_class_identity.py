"""A class is its index: classes that share a name, or differ in case only, are kept apart, and a tie is no answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contrastive_builders import build
from hypothesis import given
from hypothesis import strategies as st

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.baselines.contrastive import Contrastive
from diffusion_classifier.data.labelled import LabelledSource, with_distinct_names
from diffusion_classifier.denoisers.class_conditional import class_ids
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.evaluation import evaluate
from diffusion_classifier.runs.evaluators import BaselineEvaluator, ClassEvaluator
from diffusion_classifier.runs.rescoring import rescore
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows
from diffusion_classifier.runs.summary import summarize
from diffusion_classifier.search.shortlists import parse_shortlist

M = 12


def pixels(i):
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def source(*names, labels=None):
    labels = tuple(labels or (i % len(names) for i in range(M)))
    return with_distinct_names(
        LabelledSource("photos", names, labels, tuple(f"{i:02}" for i in range(len(labels))), pixels)
    )


def rows(folder):
    return sorted(read_rows(folder).to_pylist(), key=lambda row: row["id"])


@given(st.lists(st.sampled_from(["missile", "Missile", "sunglasses", "crane", "tench"]), min_size=2, max_size=12))
def test_names_are_distinct_and_say_what_they_were(names):
    found = source(*names)
    assert len(set(found.class_names)) == len(names)
    assert found.labels == tuple(i % len(names) for i in range(M))
    for i, (name, new) in enumerate(zip(names, found.class_names, strict=True)):
        assert new == (name if names.count(name) == 1 else f"{name} ({i})")
    assert (found.prompt_names or found.class_names) == tuple(names)
    assert bool(found.notes) == (len(set(names)) < len(names))


def test_a_name_that_would_be_made_twice_is_refused():
    with pytest.raises(InputError, match="several classes of one name"):
        source("a", "a", "a (1)")


@pytest.fixture(scope="module")
def text_model(model_folder):
    return DiffusionClassifier.from_pretrained(model_folder("sd-epsilon"), device="cpu", dtype="float32", batch_size=4)


OPTIONS = {"strategy": "fixed:1", "timesteps": "even:0.0-0.2", "seed": 1}


def test_classes_of_one_prompt_tie_and_neither_is_right(text_model, tmp_path):
    images = source("cat", "missile", "missile")
    question = ClassEvaluator(store_errors=True, template="a {}", options=OPTIONS)
    list(evaluate(text_model, images, tmp_path / "run", question))
    spec, found = read_spec(tmp_path / "run"), rows(tmp_path / "run")
    assert spec.class_names == ("cat", "missile (1)", "missile (2)")
    alone = text_model.classify([pixels(i) for i in range(M)], ["cat", "missile"], template="a {}", **OPTIONS)
    assert {result.label for result in alone} == {"cat", "missile"}  # or nothing is shown
    for i, (row, result) in enumerate(zip(found, alone, strict=True)):
        assert row["truth"] == spec.class_names[i % 3]
        assert row["errors"][1] == row["errors"][2]
        torch.testing.assert_close(torch.tensor(row["errors"][:2]), result.errors)
        if result.label == "cat":
            assert (row["prediction"], row["undecided"]) == ("cat", [])
        else:
            assert (row["prediction"], row["undecided"]) == (None, ["missile (1)", "missile (2)"])
    right = [i % 3 == 0 and result.label == "cat" for i, result in enumerate(alone)]
    summary = summarize(tmp_path / "run")
    assert summary.accuracy[0] == pytest.approx(np.mean(right))
    assert summary.undecided == pytest.approx(np.mean([result.label != "cat" for result in alone]))
    rescore(tmp_path / "run", tmp_path / "again", temperature=2.0)
    again = rows(tmp_path / "again")
    assert [row["prediction"] for row in again] == [row["prediction"] for row in found]


def test_the_truth_is_found_by_index(model_folder, tmp_path):
    """The same run with names of their own differs in nothing but the names."""
    clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", dtype="float32", batch_size=4)
    known = clf.denoiser.class_names
    shared = (known[0], "missile", "missile")
    summaries, predictions = [], []
    for i, names in enumerate([known, shared]):
        clf.denoiser.class_names = ("missile", *names[1:]) if i else names
        images = source(*clf.denoiser.class_names)
        list(evaluate(clf, images, tmp_path / str(i), ClassEvaluator(options=OPTIONS)))
        spec = read_spec(tmp_path / str(i))
        predictions.append([spec.class_names.index(row["prediction"]) for row in rows(tmp_path / str(i))])
        summaries.append(summarize(tmp_path / str(i)))
    clf.denoiser.class_names = known
    assert len(set(predictions[0])) > 1
    assert predictions[0] == predictions[1]
    for name in ("accuracy", "top5", "mean_per_class", "calibration_error"):
        assert getattr(summaries[0], name) == getattr(summaries[1], name)
    assert list(summaries[0].per_class.values()) == list(summaries[1].per_class.values())


def test_names_that_differ_in_case_only(model_folder, tmp_path):
    names = ("Turkey", "turkey", "TURKEY")
    assert class_ids(["turkey", "TURKEY", "Turkey"], names) == [1, 2, 0]
    with pytest.raises(InputError, match="may be Turkey"):
        class_ids(["tUrKeY"], names)
    clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", dtype="float32", batch_size=4)
    known, clf.denoiser.class_names = clf.denoiser.class_names, names
    images = source("turkey", "TURKEY", "Turkey")  # in another order than the model's
    list(evaluate(clf, images, tmp_path / "case", ClassEvaluator(store_errors=True, options=OPTIONS)))
    clf.denoiser.class_names = known
    errors = clf.classify([pixels(i) for i in range(M)], [1, 2, 0], **OPTIONS)
    for row, result in zip(rows(tmp_path / "case"), errors, strict=True):
        torch.testing.assert_close(torch.tensor(row["errors"]), result.errors)
        assert row["prediction"] == images.class_names[int(result.posterior.argmax())]


@pytest.mark.parametrize("names", [("bag", "missile", "missile"), ("bag", "missile", "Missile")])
def test_a_contrastive_model_that_cannot_tell_two_labels_apart_is_undecided(names, tmp_path):
    """CLIP's tokenizer writes all in small letters."""
    build("clip", tmp_path / "clip")
    model = Contrastive.from_pretrained(str(tmp_path / "clip"), device="cpu", dtype="float32")
    images = source(*names, labels=[1] * M)
    list(evaluate(model, images, tmp_path / "run", BaselineEvaluator()))
    best = [int(np.argmax(row["match_scores"])) > 0 for row in rows(tmp_path / "run")]
    assert any(best)  # or nothing is shown
    for row, tied in zip(rows(tmp_path / "run"), best, strict=True):
        assert row["prediction"] == (None if tied else "bag")
        assert row["undecided"] == (list(images.class_names[1:]) if tied else [])
    assert summarize(tmp_path / "run").accuracy[0] == 0
    assert summarize(tmp_path / "run").undecided == pytest.approx(np.mean(best))


def test_a_shortlist_takes_classes_of_one_prompt(text_model, tmp_path):
    images = source("cat", "missile", "missile", "dog")
    question = ClassEvaluator(shortlist=parse_shortlist("gradient:1", 3), options=OPTIONS)
    found = list(
        evaluate(text_model, replace(images, labels=images.labels[:2], ids=images.ids[:2]), tmp_path, question)
    )
    assert [row.status for row in found] == ["done"] * 2
