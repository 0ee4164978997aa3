"""Scores of captions, compared with the raw errors of the same draws."""

import math

import numpy as np
import pytest
import torch
from gaussians import gaussian
from tolerances import ERRORS, posteriors
from tolerances import scores as nats

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.errors import InputError

CAPTIONS = ["a dog", "a cat", "the moon"]
DIMENSIONS = 4 * 8 * 8
OPTIONS = {"draws": 5, "seed": 3}


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def clf(model_folder):
    return DiffusionClassifier.from_pretrained(model_folder("sd-epsilon"), device="cpu", dtype="float32", batch_size=4)


def raw(clf, image, captions, **options):
    """Errors of the same five draws: evenly spaced times in their nested order."""
    return clf.errors(image, captions, timesteps=[500, 250, 750, 125, 625], seed=3, **options).double()


def test_scores_are_minus_the_sum_of_squares(clf):
    scores = clf.score(picture(0), CAPTIONS, **OPTIONS)
    errors = raw(clf, picture(0), CAPTIONS)
    assert [s.caption for s in scores] == CAPTIONS
    np.testing.assert_allclose([s.score for s in scores], -DIMENSIONS * errors.mean(1), rtol=1e-5)
    best = int(errors.mean(1).argmin())
    expected = (errors - errors[best]).std(1, unbiased=True) / math.sqrt(5) * DIMENSIONS
    np.testing.assert_allclose([s.standard_error for s in scores], expected, **nats(DIMENSIONS))
    assert scores[best].standard_error == 0
    assert {s.num_evaluations for s in scores} == {15}
    assert {s.unconditional_error for s in scores} == {None}
    halved = clf.score(picture(0), CAPTIONS, temperature=2.0, **OPTIONS)
    np.testing.assert_allclose([s.score for s in halved], [s.score / 2 for s in scores])


def test_against_the_null_condition(clf):
    scores = clf.score(picture(0), CAPTIONS, unconditional=True, **OPTIONS)
    errors = raw(clf, picture(0), CAPTIONS, unconditional=True)
    torch.testing.assert_close(errors[3:], raw(clf, picture(0), [""]), **ERRORS)
    gains = DIMENSIONS * (errors[3] - errors[:3])
    np.testing.assert_allclose([s.score for s in scores], gains.mean(1), **nats(DIMENSIONS))
    expected = gains.std(1, unbiased=True) / math.sqrt(5)
    np.testing.assert_allclose([s.standard_error for s in scores], expected, **nats(DIMENSIONS))
    assert all(s.unconditional_error == pytest.approx(float(errors[3].mean()), rel=1e-5) for s in scores)
    assert {s.num_evaluations for s in scores} == {20}


def test_one_caption_many_images(clf):
    images = [picture(i) for i in range(3)]
    together = clf.score(images, "a dog", unconditional=True, **OPTIONS)
    assert [len(scores) for scores in together] == [1, 1, 1]
    alone = [clf.score(image, ["a dog"], unconditional=True, **OPTIONS) for image in images]
    expected = [scores[0].score for scores in alone]
    np.testing.assert_allclose([scores[0].score for scores in together], expected, **nats(DIMENSIONS))


@pytest.mark.parametrize("unconditional", [True, False])
def test_pairs_are_the_diagonal(clf, unconditional):
    images = [picture(i) for i in range(3)]
    captions = ["a dog", "the moon", "a dog"]
    every = clf.score(images, ["a dog", "the moon"], unconditional=unconditional, **OPTIONS)
    pairs = clf.score(images, captions, pairs=True, unconditional=unconditional, **OPTIONS)
    assert [s.caption for s in pairs] == captions
    assert [s.image for s in pairs] == ["image 0", "image 1", "image 2"]
    expected = [every[0][0].score, every[1][1].score, every[2][0].score]
    np.testing.assert_allclose([s.score for s in pairs], expected, **nats(DIMENSIONS))
    assert {s.num_evaluations for s in pairs} == {10 if unconditional else 5}
    assert all(math.isnan(s.standard_error) for s in pairs) != unconditional


def test_classes_and_the_null_class_of_a_class_conditional_model(model_folder):
    clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", dtype="float32", batch_size=4)
    scores = clf.score(picture(0), ["dog", "cat"], unconditional=True, weights="uniform", **OPTIONS)
    errors = raw(clf, picture(0), ["dog", "cat"], unconditional=True)
    gains = DIMENSIONS * (errors[2] - errors[:2])
    np.testing.assert_allclose([s.score for s in scores], gains.mean(1), **nats(DIMENSIONS))
    assert len({round(float(e), 6) for e in errors.mean(1)}) == 3


def test_an_image_that_cannot_be_used_fails_alone(clf, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    broken, good = clf.score([tmp_path / "broken.png", picture(0)], CAPTIONS, **OPTIONS)
    assert [s.caption for s in broken] == CAPTIONS
    assert all(math.isnan(s.score) and "image" in s.failure for s in broken)
    assert [s.failure for s in good] == [None] * 3
    assert good == [type(s)(**{**vars(s), "image": "image 1"}) for s in clf.score(picture(0), CAPTIONS, **OPTIONS)]


def test_a_caption_given_twice_is_scored_twice(clf):
    scores = clf.score(picture(0), ["a dog", "a cat", "a dog"], **OPTIONS)
    assert [s.caption for s in scores] == ["a dog", "a cat", "a dog"]
    assert scores[0] == scores[2]
    assert scores[0].num_evaluations == 10


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ([], {}, "no caption"),
        (CAPTIONS, {"pairs": True}, "1 images and 3 captions"),
        (CAPTIONS, {"draws": 0}, "at least 1"),
        (CAPTIONS, {"temperature": 0.0}, "temperature"),
        (["x" * 100], {}, "too long"),
    ],
)
def test_mistakes(clf, captions, options, message):
    with pytest.raises(InputError, match=message):
        clf.score(picture(0), captions, **{**OPTIONS, **options})


def test_a_model_without_null_condition_says_so():
    clf = DiffusionClassifier(gaussian(3, size=4))
    with pytest.raises(InputError, match="no null condition"):
        clf.score(picture(0), ["0", "1"], unconditional=True)


def test_choices_among_captions_of_ones_own(clf):
    """Answers and tables are those of a classifier that is given the image's captions alone."""
    images = [picture(i) for i in range(3)]
    captions = [("a dog", "a cat"), ("the moon", "a dog", "a cat"), ("a cat", "the moon")]
    options = {"strategy": "fixed:5", "seed": 3, "weights": (1.0, 2.0)}
    for unconditional in (False, True):
        found = list(clf.choices(images, captions, unconditional=unconditional, extra_losses=("l1",), **options))
        assert sorted(i for i, _, _ in found) == [0, 1, 2]
        for i, answer, scored in found:
            (alone,) = clf.classify([images[i]], captions[i], extra_losses=("l1",), **options)
            assert (answer.label, answer.class_names, answer.shortlist) == (alone.label, captions[i], None)
            k = len(captions[i])
            torch.testing.assert_close(answer.errors, alone.errors, **ERRORS)
            torch.testing.assert_close(answer.extra_losses["l1"], alone.extra_losses["l1"], **ERRORS)
            torch.testing.assert_close(answer.posterior, alone.posterior, **posteriors(DIMENSIONS))
            assert len(scored.errors) == k + unconditional
            assert answer.num_evaluations == 5 * (k + unconditional)
            if unconditional:
                torch.testing.assert_close(scored.errors[k:].double(), raw(clf, images[i], [""]), **ERRORS)


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([("a dog",)], "two captions or more, all different; one has .'a dog'."),
        ([("a dog", "a dog", "a cat")], "all different"),
        ([("a dog", "a cat")], "captions were given for 1 images, and there are more"),
        ([("a dog", "x" * 100)], "too long"),
    ],
)
def test_choices_that_cannot_be_made(clf, captions, message):
    with pytest.raises(InputError, match=message):
        list(clf.choices([picture(0), picture(1)], captions, strategy="fixed:2"))
    assert list(clf.choices([], [])) == []
