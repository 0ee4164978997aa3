from dataclasses import replace

import pytest
from gaussians import gaussian
from test_evaluation import NAMES, ask, pixels, source
from test_evaluators import pairs, single

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.selection import candidates, choose, choose_captioned
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.tasks import TASKS


class TestChoose:
    def test_a_limit_spreads_evenly(self):
        assert choose(source(10), limit=4) == [0, 2, 5, 7]
        assert choose(source(10), limit=10) == choose(source(10)) == list(range(10))

    def test_a_subset_by_id(self):
        assert choose(source(10), subset=["7.png", "2.png", "7.png"]) == [2, 7]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"limit": 0}, "between 1 and the 10 images of photos; got 0"),
            ({"limit": 11}, "got 11"),
            ({"limit": 1, "subset": ["2.png"]}, "a limit or a subset, not both"),
            (
                {"subset": ["2.png", "12.png"]},
                "'12.png' is not the id of an image of photos; the first are 0.png, 1.png",
            ),
            ({"subset": []}, "an empty subset"),
        ],
    )
    def test_mistakes(self, options, message):
        with pytest.raises(InputError, match=message):
            choose(source(10), **options)


class TestChooseCaptioned:
    def test_a_limit_never_splits_a_pair(self):
        assert choose_captioned(pairs(10), limit=8) == [0, 1, 4, 5, 10, 11, 14, 15]
        assert choose_captioned(pairs(3)) == list(range(6))
        assert choose_captioned(single(), limit=3) == [0, 1, 2]

    def test_a_subset(self):
        assert choose_captioned(pairs(), subset=["2/1", "0/0", "2/0", "0/1"]) == [0, 1, 4, 5]
        with pytest.raises(InputError, match="come in pairs, and the subset has 2/1 without 2/0"):
            choose_captioned(pairs(), subset=["2/1", "0/0", "0/1"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"limit": 3}, "the images of pairs come in pairs: the limit must be even; got 3"),
            ({"limit": 8}, "between 1 and the 6 images"),
            ({"limit": 2, "subset": ["0/0"]}, "a limit or a subset, not both"),
        ],
    )
    def test_mistakes(self, options, message):
        with pytest.raises(InputError, match=message):
            choose_captioned(pairs(), **options)


class TestCandidates:
    def test_of_a_model_that_reads_text(self):
        assert candidates(None, None, source()) == NAMES

    def test_of_one_that_knows_them_in_another_order(self, tmp_path):
        clf = DiffusionClassifier(gaussian(4, size=4, class_names=["Door", "bird", "dog", "CAT"]), batch_size=8)
        run = ask(clf, source(read=lambda i: pixels(i, 4)), tmp_path / "run", strategy="fixed:4")
        assert {row.prediction for row in run} <= set(NAMES)
        assert read_spec(tmp_path / "run").class_names == NAMES

    def test_of_imagenets_thousand_by_their_numbers(self):
        images = replace(source(), class_names=("toad", "newt", "frog"))  # not in the order of their letters
        ids = candidates(tuple(map(str, range(1000))), TASKS["imagenet-a"], images)
        assert len(ids) == 200
        assert ids[0] == 6

    def test_of_a_thousand_of_imagenets_names_in_another_order(self):
        """As a network has them that was trained on a folder of drawn images."""
        known = (*map(str, range(997)), *reversed(NAMES))
        assert candidates(known, TASKS["imagenet-a"], source()) == NAMES

    def test_of_imagenets_synonyms(self):
        known = ("tench, Tinca tinca", "church, church building", *map(str, range(998)))
        images = replace(source(), class_names=("Church", "tench", "5"))
        assert candidates(known, None, images) == images.class_names
        with pytest.raises(InputError, match="has the class 'temple', which the model does not know"):
            candidates(known, None, replace(images, class_names=("church", "temple", "5")))

    def test_names_in_the_order_of_their_letters_are_not_in_imagenets(self):
        images = replace(source(), class_names=tuple(sorted(f"thing {i}" for i in range(200))))
        with pytest.raises(InputError, match="has the class 'thing 0', which the model does not know"):
            candidates(tuple(map(str, range(1000))), TASKS["imagenet-a"], images)
        images = replace(source(), class_names=tuple(f"n{i:08}" for i in range(200)))
        assert candidates(tuple(map(str, range(1000))), TASKS["imagenet-a"], images) == TASKS["imagenet-a"].imagenet_ids

    def test_codes_say_nothing_to_a_model_that_reads_text(self):
        with pytest.raises(InputError, match="are called n01440764, n01443537 …, which says nothing"):
            candidates(None, None, replace(source(), class_names=("n01440764", "n01443537")))
        digits = replace(source(), class_names=("0", "1"))
        with pytest.raises(InputError, match="which says nothing"):
            candidates(None, TASKS["imagenetv2"], digits)
        assert candidates(None, None, digits) == digits.class_names

    def test_of_others(self):
        with pytest.raises(
            InputError, match="photos has the class 'dog', which the model does not know: its own are cat"
        ):
            candidates(("cat", "cow"), None, source())
