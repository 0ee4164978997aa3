import json
from functools import partial

import numpy as np
import pytest
import torch
from builders import tokenizer
from gaussians import SCHEDULES, gaussian
from PIL import Image
from tolerances import CONFIDENCE, ERRORS, posteriors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    pipeline,
)

from diffusion_classifier import Coarse, DiffusionClassifier, Gradient, InputError, Screened, Sequential, Tree
from diffusion_classifier.denoisers.base import Conditioning
from diffusion_classifier.denoisers.families.gaussian import Gaussian
from diffusion_classifier.search.jobs import Cost, ImageJob
from diffusion_classifier.search.posterior import mean_errors
from diffusion_classifier.search.shortlists import gradient, parse_shortlist, read_tree
from diffusion_classifier.search.shortlists.base import narrowed
from diffusion_classifier.search.strategies import Fixed, Staged

LABELS = ["pug", "beagle", "boxer", "tabby", "siamese", "goldfish"]
BRANCHES = {"mammal": {"dog": ["pug", "beagle", "boxer"], "cat": ["tabby", "siamese"]}, "goldfish": []}


class Zoo(Gaussian):
    """Reads text: a name is a class or one of the branches, which stands for the mean of its classes."""

    def __init__(self):
        base = gaussian(6, size=4)
        super().__init__(base.means, base.variances[:1].expand_as(base.variances), base.schedule)
        self.class_names = None
        within = {"mammal": LABELS[:5], "dog": LABELS[:3], "cat": LABELS[3:5]} | {name: [name] for name in LABELS}
        self.rows = {name: [LABELS.index(c) for c in classes] for name, classes in within.items()}
        self.asked = []

    def condition(self, classes):
        self.asked.append(list(classes))
        rows = [self.rows[c.removeprefix("a ").removesuffix(".")] for c in classes]
        return Conditioning({k: torch.stack([v[r].mean(0) for r in rows]) for k, v in self._tables.items()})

    @property
    def _tables(self):
        return {"mean": self.means, "variance": self.variances}


def classifier(denoiser=None):
    return DiffusionClassifier(denoiser or Zoo(), batch_size=64)


def pixels(i=0):
    return np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)


IMAGES = [pixels(i) for i in range(5)]


def by_colour(image, candidate_labels, hypothesis_template=None):
    """Answers as a zero-shot pipeline: a score from the first pixel."""
    assert isinstance(image, Image.Image)
    assert hypothesis_template in (None, "a {}.")
    first = image.getpixel((0, 0))[0]
    scores = [(first + 1) * (i + 3) % 17 + i / 100 for i in range(len(candidate_labels))]
    answers = [{"label": label, "score": s} for label, s in zip(candidate_labels, scores, strict=True)]
    return sorted(answers, key=lambda a: -a["score"])


class TestAnySearchFollows:
    """What comes of a shortlist is what comes of a search among its labels alone."""

    @pytest.mark.parametrize("strategy", [Fixed(9), Staged((3, 9), (2, 1)), Sequential(32), Staged((3, 9), (4, 1))])
    @pytest.mark.parametrize(
        "shortlist",
        [
            Screened(by_colour, 3),
            Coarse(Zoo(), keep=3, num_draws=2),
            Tree(BRANCHES, keep=1, num_draws=2),
            Gradient(3, 2),
        ],
        ids=["screened", "coarse", "tree", "gradient"],
    )
    def test_as_among_its_labels(self, shortlist, strategy):
        clf = classifier()
        for image, result in zip(
            IMAGES, clf.classify(IMAGES, LABELS, shortlist=shortlist, strategy=strategy), strict=True
        ):
            names = result.shortlist
            assert 2 <= len(names) < 6
            assert list(names) == [name for name in LABELS if name in names]
            (alone,) = clf.classify(image, list(names), strategy=strategy.among(len(names)))
            rows = [LABELS.index(name) for name in names]
            assert result.label == alone.label
            torch.testing.assert_close(result.errors[rows], alone.errors, equal_nan=True, **ERRORS)
            torch.testing.assert_close(result.posterior[rows], alone.posterior, **posteriors(3 * 4 * 4))
            torch.testing.assert_close(result.bound[rows], alone.bound, **posteriors(3 * 4 * 4))
            assert result.confidence == pytest.approx(alone.confidence, abs=CONFIDENCE)
            assert (result.undecided, result.ties) == (alone.undecided, alone.ties)
            assert result.num_evaluations == alone.num_evaluations + result.screening.num_evaluations
            assert result.seconds >= result.screening.seconds > 0
            out = [i for i in range(6) if i not in rows]
            assert result.errors[out].isnan().all()
            assert (result.posterior[out] == 0).all()
            assert (result.bound[out] == 1).all()

    def test_none_without(self):
        (result,) = classifier().classify(IMAGES[0], LABELS, strategy=Fixed(2))
        assert (result.shortlist, result.screening) == (None, Cost())

    def test_a_broken_image_is_a_row(self, tmp_path):
        (tmp_path / "x.png").write_text("no")
        for shortlist in (Screened(by_colour, 3), Gradient(3, 2), Tree(BRANCHES)):
            bad, good = classifier().classify(
                [tmp_path / "x.png", IMAGES[0]], LABELS, shortlist=shortlist, strategy="fixed:4"
            )
            assert bad.failure is not None
            assert good.label is not None

    @pytest.mark.parametrize("keep", [0, 1, 6, 7])
    def test_a_length_that_leaves_no_choice_or_all(self, keep):
        for shortlist in (Screened(by_colour, keep), Coarse(Zoo(), keep=keep), Gradient(keep)):
            with pytest.raises(InputError, match=f"a shortlist of {keep} of 6 classes"):
                classifier().stream(IMAGES, LABELS, shortlist=shortlist)

    def test_draws_of_no_weight(self):
        for shortlist in (Coarse(Zoo(), keep=3), Gradient(3), Tree(BRANCHES)):
            with pytest.raises(InputError, match="times whose weight is 0"):
                classifier().stream(IMAGES, LABELS, shortlist=shortlist, weights=lambda u: u > 0.9)

    def test_classes_of_one_name(self, model_folder):
        """Two of ImageNet's are a crane; the answer tells them apart, and a shortlist must not stumble over it."""
        clf = DiffusionClassifier.from_pretrained(model_folder("dit"), device="cpu", batch_size=8)
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (result,) = clf.classify(image, [0, 1, 2, 4], shortlist=Gradient(3, 1), strategy="fixed:2")
        assert len(result.shortlist) == 3

    def test_what_is_not_a_number_rules_nothing_out(self):
        found = narrowed(ImageJob("x", torch.zeros(3, 2, 2), 0), torch.tensor([1.0, torch.nan, 2.0]), 2, Cost(1))
        assert (found.candidates, found.cost) == (None, Cost(1))

    def test_the_last_place_is_shared_by_what_ties(self):
        job = ImageJob("x", torch.zeros(3, 2, 2), 0, cost=Cost(1, 1.0, 1.0))
        found = narrowed(job, torch.tensor([3.0, 1.0, 2.0, 2.0, torch.inf]), 2, Cost(2, 1.5, 0.5))
        assert found.candidates.tolist() == [1, 2, 3]
        assert found.cost == Cost(3, 2.5, 1.5)


class TestScreened:
    def test_the_best_of_another_classifier(self):
        for image, result in zip(
            IMAGES, classifier().classify(IMAGES, LABELS, shortlist=Screened(by_colour, 2)), strict=True
        ):
            best = by_colour(Image.fromarray(image), LABELS)[:2]
            assert {a["label"] for a in best} <= set(result.shortlist)
            assert result.screening.num_evaluations == 0

    def test_by_another_of_ours(self):
        by = partial(classifier(), strategy=Fixed(3))
        (result,) = classifier().classify(IMAGES[0], LABELS, template="a {}.", shortlist=Screened(by, 2))
        best = by(Image.fromarray(IMAGES[0]), LABELS, hypothesis_template="a {}.")[:2]
        assert set(result.shortlist) == {a["label"] for a in best}

    def test_a_model_of_transformers(self, tmp_path):
        torch.manual_seed(0)
        tokens = tokenizer()
        text = CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=24, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
        )  # fmt: skip
        vision = CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
        CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        ).save_pretrained(tmp_path)
        size = {"height": 8, "width": 8}
        CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokens).save_pretrained(tmp_path)
        own = pipeline("zero-shot-image-classification", model=str(tmp_path))
        shortlist = parse_shortlist(f"model:{tmp_path}", 2)
        for image, result in zip(
            IMAGES, classifier().classify(IMAGES, LABELS, template="a {}.", shortlist=shortlist), strict=True
        ):
            answer = own(Image.fromarray(image), candidate_labels=LABELS, hypothesis_template="a {}.")
            assert set(result.shortlist) == {a["label"] for a in answer[:2]}
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(InputError, match="cannot be loaded to make a shortlist"):
            classifier().stream(IMAGES, LABELS, shortlist=Screened(str(tmp_path), 2))

    def test_scores_that_are_not_numbers(self):
        def by(image, candidate_labels):
            return [{"label": label, "score": float("nan")} for label in candidate_labels if image]

        with pytest.raises(InputError, match="gave no score for 'pug'"):
            classifier().classify(IMAGES, LABELS, shortlist=Screened(by, 2))

    def test_answers_that_lack_a_label(self):
        shortlist = Screened(lambda image, candidate_labels: by_colour(image, candidate_labels)[:3], 2)
        with pytest.raises(InputError, match="gave no score for"):
            classifier().classify(IMAGES, LABELS, shortlist=shortlist)


class TestCoarse:
    def test_the_best_by_a_few_draws_of_the_other_model(self):
        other = classifier(gaussian(6, size=2, class_names=LABELS, seed=3))
        by_names = classifier(gaussian(6, size=4, class_names=LABELS))
        shortlist = Coarse(other.denoiser, keep=2, num_draws=3)
        for image, result in zip(IMAGES, by_names.classify(IMAGES, shortlist=shortlist, loss="l1"), strict=True):
            means = mean_errors(other.errors(image, LABELS, timesteps=[500, 250, 750], loss="l1"))
            assert set(result.shortlist) == {LABELS[i] for i in means.argsort()[:2].tolist()}
            assert result.screening.num_evaluations == 18

    def test_a_lower_resolution_costs_less(self, model_folder):
        clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", batch_size=32)
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        (result,) = clf.classify(image, shortlist=Coarse(size=8, keep=2, num_draws=4), strategy="fixed:4")
        assert result.screening.num_evaluations == 12
        assert 0.15 * 12 < result.screening.full_evaluations < 0.5 * 12
        small = DiffusionClassifier(clf.denoiser, batch_size=32)
        assert small.denoiser.image_size == 16  # as it was

    @pytest.mark.parametrize(("family", "size"), [("dit", 8), ("class-unet", 10), ("sd-epsilon", 7)])
    def test_sizes_that_a_network_does_not_take(self, model_folder, family, size):
        clf = DiffusionClassifier.from_pretrained(model_folder(family), device="cpu", batch_size=8)
        names = ["a", "b", "c"] if clf.denoiser.class_names is None else [0, 1, 2]
        with pytest.raises(InputError, match=f"does not take images of {size} pixels"):
            clf.stream([pixels()], names, shortlist=Coarse(size=size, keep=2))

    def test_what_makes_no_sense(self):
        with pytest.raises(InputError, match="another model or another image size"):
            Coarse()
        with pytest.raises(InputError, match="at least 1 draw"):
            classifier().stream(IMAGES, LABELS, shortlist=Coarse(size=8, keep=2, num_draws=0))


class TestTree:
    def test_down_the_best_branches(self):
        """Against the same walk by raw errors of the branches' names."""
        clf, leaves = classifier(), {"dog": LABELS[:3], "cat": LABELS[3:5]}
        seen = set()
        for image in [pixels(i) for i in range(20)]:
            (result,) = clf.classify(
                image, LABELS, template="a {}.", shortlist=Tree(BRANCHES, 1, 3), strategy="fixed:3"
            )

            def best(names, image=image):
                errors = clf.errors(image, names, timesteps=[500, 250, 750], template="a {}.").mean(1)
                return names[int(errors.argmin())]

            # A branch of one class leaves no choice, so that the next one is followed too: all of them, at the top.
            top = best(["mammal", "goldfish"])
            lower = best(["dog", "cat", "goldfish"] if top == "goldfish" else ["dog", "cat"])
            seen.add(lower)
            if lower != "goldfish":
                assert list(result.shortlist) == leaves[lower]
                assert result.screening.num_evaluations == 3 * (2 + (3 if top == "goldfish" else 2))
        assert len(seen) > 1
        assert ["a mammal.", "a goldfish."] in clf.denoiser.asked
        assert ["a dog.", "a cat.", "a goldfish."] in clf.denoiser.asked

    def test_a_tree_is_read(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps(BRANCHES))
        pairs = [("dog", "mammal"), ("cat", "mammal"), ("mammal", "animal"), ("goldfish", "animal")]
        pairs += [(name, "dog") for name in LABELS[:3]] + [(name, "cat") for name in LABELS[3:5]]
        (tmp_path / "b.txt").write_text("\n".join(f"{child}\t{parent}" for child, parent in pairs) + "\n\n")
        found = [
            classifier().classify(IMAGES, LABELS, template="a {}.", shortlist=Tree(read_tree(tmp_path / name), 1, 3))
            for name in ("a.json", "b.txt")
        ]
        assert [r.shortlist for r in found[0]] == [r.shortlist for r in found[1]]

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("", "it is empty"),
            ("a b", "line 1 is not a child, a tab and its parent"),
            ("a\tb\na\tc", "'a' has two parents"),
            ("a\tb\nb\ta", "it has no root"),
            ("a\tb\nc\td\nd\tc", "it holds a circle"),
            ("{", "cannot be read as a tree"),
        ],
    )
    def test_files_that_are_no_tree(self, tmp_path, text, sentence):
        (tmp_path / "t").write_text(text)
        with pytest.raises(InputError, match=sentence):
            read_tree(tmp_path / "t")

    @pytest.mark.parametrize(
        ("branches", "sentence"),
        [
            ({"dog": LABELS[:3], "cat": LABELS[3:5]}, "lacks goldfish"),
            ({"dog": LABELS, "cat": ["tabby"]}, "the class 'tabby' twice"),
            ({"dog": ["pug", "pug"]}, "the class 'pug' twice"),
            ({"dog": 3}, "holds objects, and lists of names"),
            ({"dog": [3]}, "holds objects, and lists of names"),
            ({"dog": [{"small": ["pug"]}]}, "holds objects, and lists of names"),
            ({"all": LABELS}, "a single branch"),
        ],
    )
    def test_trees_that_do_not_suit(self, branches, sentence):
        with pytest.raises(InputError, match=sentence):
            classifier().stream(IMAGES, LABELS, shortlist=Tree(branches))

    def test_models_of_closed_classes_and_numbers(self):
        with pytest.raises(InputError, match="has no prompts for superclasses"):
            classifier(gaussian(6, size=4, class_names=LABELS)).stream(IMAGES, shortlist=Tree(BRANCHES))
        with pytest.raises(InputError, match="at least 1 branch"):
            Tree(BRANCHES, keep=0)


class TestGradient:
    def test_ranks_by_the_linearised_error(self):
        """On Gaussians of one variance the error is a square, whose derivative at the mean of means is known."""
        denoiser = Zoo()
        clf = classifier(denoiser)
        times = torch.tensor([500, 250])
        alpha, sigma = SCHEDULES["linear"](times)
        for image, result in zip(
            IMAGES, clf.classify(IMAGES, LABELS, shortlist=Gradient(2, 2), strategy="fixed:2"), strict=True
        ):
            raw = clf.errors(image, LABELS, timesteps=[500, 250]).double()
            centre = denoiser.means.mean(0)
            quadratic = torch.zeros_like(raw)
            for n in range(2):
                gain = sigma[n] * alpha[n] / (alpha[n] ** 2 * denoiser.variances[0] + sigma[n] ** 2)
                quadratic[:, n] = (gain * (denoiser.means - centre)).square().flatten(1).mean(1)
            linear = (raw - quadratic).mean(1)
            assert set(result.shortlist) == {LABELS[i] for i in linear.argsort()[:2].tolist()}
            assert result.screening.num_evaluations == 4

    def test_weights_over_time_count(self):
        clf = classifier()
        first = clf.classify(IMAGES, LABELS, shortlist=Gradient(2, 1), strategy="fixed:4")
        late = clf.classify(IMAGES, LABELS, shortlist=Gradient(2, 2), strategy="fixed:4", weights=lambda u: u == 0.5)
        even = clf.classify(IMAGES, LABELS, shortlist=Gradient(2, 2), strategy="fixed:4")
        assert [r.shortlist for r in first] == [r.shortlist for r in late] != [r.shortlist for r in even]

    def test_a_network_that_overflows_leaves_all_candidates(self):
        class Broken(Zoo):
            def forward(self, noisy, t, conditioning):
                return super().forward(noisy, t, conditioning) * torch.nan

        for shortlist in (Gradient(2, 2), Tree(BRANCHES), Coarse(Broken(), keep=2)):
            (result,) = classifier(Broken()).classify(IMAGES[0], LABELS, shortlist=shortlist, strategy="fixed:2")
            assert "not finite" in result.failure

    def test_a_lack_of_memory_halves_the_batch(self, monkeypatch):
        whole = classifier().classify(IMAGES, LABELS, shortlist=Gradient(2, 2), strategy="fixed:2")
        sizes, find = [], gradient.linearised_errors

        def limited(setting, jobs, num_draws):
            sizes.append(len(jobs))
            if len(jobs) > 2:
                raise torch.OutOfMemoryError
            return find(setting, jobs, num_draws)

        monkeypatch.setattr(gradient, "linearised_errors", limited)
        results = classifier().classify(IMAGES, LABELS, shortlist=Gradient(2, 2), strategy="fixed:2")
        assert sizes == [5, 2, 2, 1]
        assert [r.shortlist for r in results] == [r.shortlist for r in whole]

    def test_no_draws_and_compiled_networks(self):
        with pytest.raises(InputError, match="at least 1 draw"):
            classifier().stream(IMAGES, LABELS, shortlist=Gradient(2, 0))
        clf = classifier()
        clf.denoiser.compiled = True
        with pytest.raises(InputError, match="without --compile"):
            clf.stream(IMAGES, LABELS, shortlist=Gradient(2))

    def test_holds_the_true_label_of_photographs(self):
        """With the bundled model; three classes by chance would hold it three times of ten."""
        from diffusion_classifier.data.fashion import load_sample

        sample = load_sample()[::17][:48]
        clf = DiffusionClassifier.from_pretrained("fashion", device="cpu", dtype="float32", batch_size=64)
        results = clf.classify([s.image for s in sample], shortlist=Gradient(3, 2), strategy="fixed:1")
        held = [s.label in r.shortlist for s, r in zip(sample, results, strict=True)]
        assert np.mean(held) > 0.8


class TestParse:
    @pytest.mark.parametrize("text", ["model:some/clip", "coarse:128", "coarse:some/model", "gradient:7"])
    def test_spelled_as_read(self, text):
        assert str(parse_shortlist(text)) == text
        assert parse_shortlist(text, 3).keep == 3

    def test_a_tree_and_the_default_of_gradients(self, tmp_path):
        (tmp_path / "t.json").write_text(json.dumps(BRANCHES))
        assert str(parse_shortlist(f"tree:{tmp_path / 't.json'}")) == f"tree:{tmp_path / 't.json'}"
        assert parse_shortlist("gradient") == Gradient()
        assert str(Screened(by_colour)) == "model:by_colour"

    @pytest.mark.parametrize("text", ["", "clip", "model:", "coarse:", "tree:", "gradient:x", "gradient:1.5"])
    def test_others_are_refused(self, text):
        with pytest.raises(InputError, match="is not known"):
            parse_shortlist(text)
