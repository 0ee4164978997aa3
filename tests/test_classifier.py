import threading
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gaussians import gaussian
from PIL import Image
from scipy.stats import ttest_rel
from tolerances import CONFIDENCE, ERRORS, posteriors
from torch.nn import functional as F
from transformers import ZeroShotImageClassificationPipeline

from diffusion_classifier.classifier import DiffusionClassifier
from diffusion_classifier.data import images as images_module
from diffusion_classifier.data.images import load_image, preprocess
from diffusion_classifier.denoisers import Conditioning, ModelDefaults, load_denoiser
from diffusion_classifier.denoisers.families.gaussian import Gaussian
from diffusion_classifier.diffusion.draws import Draws
from diffusion_classifier.diffusion.schedules import RectifiedFlow
from diffusion_classifier.errors import InputError
from diffusion_classifier.search.posterior import log_posterior, mean_errors
from diffusion_classifier.search.strategies import Fixed, Sequential, Staged

LABELS = ["pug", "beagle", "boxer"]
D = 3 * 4 * 4


class Scorer(Gaussian):
    """Reads text: a prompt stands for the class whose name is in it. Keeps the prompts."""

    def __init__(self):
        base = gaussian(3, size=4)
        super().__init__(base.means, base.variances, base.schedule)
        self.class_names = None
        self.prompts = []

    def condition(self, classes):
        self.prompts.append(list(classes))
        ids = [next(i for i, label in enumerate(LABELS) if label in prompt) for prompt in classes]
        return Conditioning({"mean": self.means[ids], "variance": self.variances[ids]})


def classifier(batch_size=64, class_names=LABELS):
    return DiffusionClassifier(gaussian(len(class_names), size=4, class_names=class_names), batch_size=batch_size)


def pixels(i=0):
    """(4, 4, 3), uint8."""
    return np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)


@pytest.fixture
def paths(tmp_path):
    for i in range(4):
        Image.fromarray(pixels(i)).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(4)]


def same(result, other, order=slice(None)):
    assert result.label == other.label
    assert result.num_evaluations == other.num_evaluations
    assert result.confidence == pytest.approx(other.confidence, abs=CONFIDENCE)
    assert torch.equal(result.t, other.t)
    torch.testing.assert_close(result.errors, other.errors[order], equal_nan=True, **ERRORS)
    for field in ("posterior", "bound"):
        torch.testing.assert_close(getattr(result, field), getattr(other, field)[order], **posteriors(D))


class TestCall:
    def test_answers_as_the_pipeline_of_transformers_does(self, paths):
        clf = DiffusionClassifier(Scorer())
        clf.denoiser.defaults = ModelDefaults("fixed:64")
        answers = clf(paths[:2], LABELS)
        assert answers == [clf(paths[0], LABELS), clf(str(paths[1]), ",  ".join(LABELS))]
        pipeline = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(model_type="clip")))
        for path, answer in zip(paths, answers, strict=False):
            (result,) = clf.classify(path, LABELS, template="This is a photo of {}.")
            logits = -D * mean_errors(result.errors)
            theirs = ZeroShotImageClassificationPipeline.postprocess(
                pipeline, {"candidate_labels": LABELS, "logits": logits[None]}
            )
            assert [list(row) for row in answer] == [list(row) for row in theirs] == [["score", "label"]] * 3
            assert [row["label"] for row in answer] == [row["label"] for row in theirs]
            assert [row["score"] for row in answer] == pytest.approx([row["score"] for row in theirs])
            assert {type(value) for row in answer for value in row.values()} == {float, str}

    def test_template_makes_the_prompts(self, paths):
        clf = DiffusionClassifier(Scorer())
        clf(paths[0], LABELS)
        clf(paths[0], LABELS, "a {}, a type of pet")
        clf.classify(paths[0], LABELS)
        assert clf.denoiser.prompts == [
            [f"This is a photo of {label}." for label in LABELS],
            [f"a {label}, a type of pet" for label in LABELS],
            LABELS,
        ]

    def test_class_conditional_models_need_no_labels_and_ignore_the_template(self, paths):
        answer = classifier()(paths[0])
        assert sorted(row["label"] for row in answer) == sorted(LABELS)
        assert answer == classifier()(paths[0], LABELS)

    def test_an_unreadable_image_is_an_error(self, paths, tmp_path):
        (tmp_path / "empty.png").touch()
        with pytest.raises(InputError) as e:
            classifier()([paths[0], tmp_path / "empty.png"])
        assert str(e.value) == f"{tmp_path / 'empty.png'}: the file is empty (0 bytes)"


class TestClassify:
    def test_equals_a_plain_loop(self, paths):
        clf = classifier()
        (result,) = clf.classify(paths[0], strategy=Fixed(7), timesteps="random", loss="l1", seed=5)
        picture, draws = load_image(paths[0]), Draws(seed=5)
        x = preprocess(picture.image, 4)
        for n, t in enumerate(result.t):
            alpha, sigma = clf.denoiser.schedule(t)
            noise = draws.noise(n, picture.key, (3, 4, 4))
            noisy = (alpha * x + sigma * noise)[None]
            for c, label in enumerate(LABELS):
                predicted = clf.denoiser.forward(noisy, t[None], clf.denoiser.condition([label]))[0]
                assert float(result.errors[c, n]) == pytest.approx(float(F.l1_loss(predicted, noise)), rel=1e-5)
        assert result.num_evaluations == 21
        assert result.label == LABELS[result.errors.mean(1).argmin()]

    def test_every_kind_of_source_gives_the_same_answer(self, paths):
        array = pixels(1)
        sources = [
            str(paths[1]),
            paths[1],
            Image.open(paths[1]),
            array,
            array / 255,
            torch.from_numpy(array).movedim(2, 0),
            paths[1].read_bytes(),
        ]
        first, *others = classifier().classify(sources, strategy="fixed:64")
        for other in others:
            assert torch.equal(other.errors, first.errors)
            same(other, first)
        assert [result.name for result in (first, *others)] == [str(paths[1])] * 2 + [f"image {i}" for i in range(2, 7)]

    def test_name_folder_and_company_do_not_matter(self, paths, tmp_path):
        (tmp_path / "other").mkdir()
        copy = tmp_path / "other" / "name.png"
        copy.write_bytes(paths[2].read_bytes())
        alone, among_others = classifier().classify(copy)[0], classifier(5).classify([*paths, copy])
        same(among_others[2], alone)
        same(among_others[4], alone)
        assert among_others[4].name == str(copy)
        assert not torch.equal(among_others[0].errors, alone.errors)

    @pytest.mark.parametrize("strategy", [Fixed(8), Staged((3, 8), (2, 1))], ids=str)
    def test_permuting_labels_permutes_results(self, paths, strategy):
        order = [2, 0, 1]
        for result, permuted in zip(
            classifier().classify(paths, LABELS, strategy=strategy),
            classifier().classify(paths, [LABELS[i] for i in order], strategy=strategy),
            strict=True,
        ):
            same(permuted, result, order)

    @pytest.mark.parametrize("strategy", [Fixed(8), Staged((3, 8), (2, 1))], ids=str)
    def test_batch_size_changes_nothing(self, paths, strategy):
        reference = classifier(16).classify(paths, strategy=strategy)
        for batch_size in (1, 8, 32, "auto"):
            for result, other in zip(classifier(batch_size).classify(paths, strategy=strategy), reference, strict=True):
                same(result, other)

    def test_results_are_in_the_order_of_the_images_and_failures_are_among_them(self, paths, tmp_path, monkeypatch):
        """Also what can be decoded but not brought to the size of the model."""
        monkeypatch.setattr(images_module, "MAX_PIXELS", 1000)
        (tmp_path / "text.png").write_text("no image")
        narrow = np.zeros((1, 200, 3), dtype=np.uint8)
        sources = [tmp_path / "gone.png", paths[0], tmp_path / "text.png", narrow, paths[1], np.zeros(3), paths[2]]
        results = classifier(4).classify(iter(sources), strategy=Staged((3, 8), (2, 1)))
        assert [result.name for result in results] == [
            *map(str, [tmp_path / "gone.png", paths[0], tmp_path / "text.png"]),
            "image 3",
            str(paths[1]),
            "image 5",
            str(paths[2]),
        ]
        reasons = {i: r.failure for i, r in enumerate(results) if r.failure is not None}
        assert list(reasons) == [0, 2, 3, 5]
        assert reasons[0] == "there is no such file or folder"
        assert "no image of a known format" in reasons[2]
        assert "too narrow" in reasons[3]
        assert "shape (3,)" in reasons[5]
        for i, reference in zip([1, 4, 6], classifier().classify(paths[:3], strategy="staged:3,8/2,1"), strict=True):
            same(results[i], reference)

    def test_all_unreadable_and_none_at_all(self, tmp_path):
        results = classifier().classify([tmp_path / "a.png", tmp_path / "b.png"])
        assert [(r.label, r.num_evaluations) for r in results] == [(None, 0)] * 2
        assert classifier().classify([]) == []
        assert classifier()([]) == []

    def test_notes_of_decoding_are_passed_on(self):
        transparent = np.dstack([pixels(), np.zeros((4, 4), dtype=np.uint8)])
        (result,) = classifier().classify(transparent)
        assert result.notes == ("transparent parts on white",)

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_settings_reach_the_posterior(self, paths, reduction):
        options = {"temperature": 3.0, "reduction": reduction, "prior": [1, 5, 2]}
        (result,) = classifier().classify(paths[0], strategy="fixed:64", **options)
        expected = log_posterior(mean_errors(result.errors), num_dimensions=D, **options).exp()
        torch.testing.assert_close(result.posterior, expected)

    def test_the_model_says_how_it_is_best_read(self, paths):
        clf = classifier()
        clf.denoiser.defaults = ModelDefaults("fixed:5", "l1", "middle:0.2", 4.0)
        (result,) = clf.classify(paths[0])
        assert result.errors.shape == (3, 5)
        assert result.t.min() >= 400
        assert result.t.max() < 600
        expected = clf.errors(paths[0], LABELS, timesteps=result.t.tolist(), loss="l1")
        torch.testing.assert_close(result.errors, expected)
        torch.testing.assert_close(
            result.posterior, log_posterior(mean_errors(expected), num_dimensions=D, temperature=4).exp()
        )
        (result,) = clf.classify(paths[0], strategy="fixed:6", loss="l2", timesteps="250")
        assert result.t.tolist() == [250] * 6
        torch.testing.assert_close(result.errors, clf.errors(paths[0], LABELS, timesteps=[250] * 6))
        # The temperature was fitted for l1 and for sums.
        torch.testing.assert_close(result.posterior, log_posterior(mean_errors(result.errors), num_dimensions=D).exp())
        (result,) = clf.classify(paths[0], reduction="mean")
        torch.testing.assert_close(
            result.posterior, log_posterior(mean_errors(expected), num_dimensions=D, reduction="mean").exp()
        )

    def test_the_models_own_strategy_serves_few_labels_too(self, paths):
        """Made for all classes, it may keep more than there are candidates; one that the user names may not."""
        clf = classifier()
        clf.denoiser.defaults = ModelDefaults("staged:2,9/2,1")
        assert clf.classify(paths[0])[0].num_evaluations == 3 * 2 + 2 * 7
        assert clf.classify(paths[0], LABELS[:2])[0].num_evaluations == 2 * 9
        with pytest.raises(InputError, match="keeps 2 classes"):
            clf.classify(paths[0], LABELS[:2], strategy="staged:2,9/2,1")

    def test_classes_by_index(self, paths):
        (by_index,) = classifier().classify(paths[0], [2, np.int64(0)])
        (by_name,) = classifier().classify(paths[0], ["boxer", "pug"])
        same(by_index, by_name)
        assert by_index.class_names == ("boxer", "pug")

    def test_classes_that_share_a_name_are_told_apart(self, paths):
        """As the two cranes of ImageNet."""
        clf = classifier(class_names=["crane", "pug", "Crane"])
        (result,) = clf.classify(paths[0])
        assert result.class_names == ("crane (0)", "pug", "Crane (2)")
        assert len(result.scores) == len(clf(paths[0])) == 3

    def test_seed_is_that_of_the_noise(self, paths):
        a, b, c = (classifier().classify(paths[0], strategy="fixed:8", seed=seed)[0].errors for seed in (1, 1, 2))
        assert torch.equal(a, b)
        assert (a != c).all()

    @pytest.mark.parametrize(
        ("classnames", "options", "message"),
        [
            ([], {}, r"at least two labels .* got none"),
            ([1], {}, r"at least two labels .* got 'beagle'"),
            (["pug"], {}, "at least two labels"),
            ([1, 1], {}, "1 and 1 are one class of this model, beagle"),
            (["pug", "PUG"], {}, "given twice"),
            ([0, 7], {}, "7 is not between 0 and 2"),
            (["pug", "poodle"], {}, "not trained on the class 'poodle'"),
            (["pug", 2], {}, "labels are words; got 2"),
            (None, {"template": "a {}"}, "no use for a template"),
            (None, {"strategy": "foo"}, "strategy 'foo'"),
            (None, {"strategy": "staged:2,4/3,1"}, "keeps 3 classes"),
            (None, {"timesteps": "foo"}, "timesteps 'foo'"),
            (None, {"timesteps": "10,1000"}, "0 to 999; got 1000"),
            (None, {"loss": "foo"}, "loss 'foo'"),
            (None, {"loss": ""}, "loss ''"),
            (None, {"reduction": "foo"}, "got 'foo'"),
            (None, {"temperature": 0}, "temperature .* got 0"),
            (None, {"prior": [1, 2]}, "prior must hold 3"),
        ],
    )
    def test_bad_settings_are_refused_before_an_image_is_read(self, classnames, options, message, monkeypatch):
        tuned = []
        monkeypatch.setattr("diffusion_classifier.search.scorer.tune", lambda *_: tuned.append(1) or 64)

        def images():
            raise AssertionError("an image was asked for")
            yield

        with pytest.raises(InputError, match=message):
            classifier("auto").stream(images(), classnames, **options)
        assert not tuned

    @pytest.mark.parametrize(
        ("classnames", "message"),
        [(None, "text-to-image model needs candidates: give it the labels"), ([0, 1], "labels are words; got 0")],
    )
    def test_a_model_that_reads_text_needs_words(self, paths, classnames, message):
        with pytest.raises(InputError, match="needs class names, not class indices"):
            DiffusionClassifier(Scorer()).errors(paths[0], [0, 1], timesteps=[1], template="a {}")
        with pytest.raises(InputError, match=message):
            DiffusionClassifier(Scorer()).classify(paths[0], classnames)

    @pytest.mark.parametrize("batch_size", [0, -1, 2.5, "many", None])
    def test_bad_batch_sizes_are_refused(self, batch_size):
        with pytest.raises(InputError, match=f"whole number from 1, or auto; got {batch_size}"):
            classifier(batch_size)


class TestStream:
    def test_takes_few_images_ahead_and_yields_results_as_they_are_done(self):
        taken = []

        def endless():
            for i in count():
                taken.append(i)
                yield pixels(i)

        stream = classifier(batch_size=24).stream(endless(), strategy=Fixed(8))
        assert taken == []
        for i in range(5):
            assert next(stream).name == f"image {i}"
            assert len(taken) <= i + 1 + 9  # decoded ahead, and one in the making
        stream.close()

    def test_images_are_read_while_others_are_scored(self):
        """The next image is taken though the result of the first is not even asked for."""
        read = threading.Event()

        def two():
            yield pixels(0)
            read.set()
            yield pixels(1)

        clf = classifier(batch_size=24)
        waited = []
        predict = clf.denoiser.predict_noise

        def slow(*arguments):
            waited.append(read.wait(60))
            return predict(*arguments)

        clf.denoiser.predict_noise = slow
        assert len(list(clf.stream(two(), strategy=Fixed(8)))) == 2
        assert all(waited)

    def test_an_error_of_the_source_of_images_is_raised_after_the_results_before_it(self):
        def broken():
            yield pixels(0)
            raise OSError("the camera is gone")

        stream = classifier(batch_size=24).stream(broken(), strategy=Fixed(8))
        with pytest.raises(OSError, match="the camera is gone"):
            list(stream)

    def test_one_image_is_not_taken_for_a_series(self, paths):
        """A string is a series of letters, and an array one of rows."""
        for source in (str(paths[0]), pixels()):
            (result,) = classifier().stream(source)
            assert result.failure is None

    def test_a_failure_does_not_wait_for_the_end(self, paths, tmp_path):
        stream = classifier(batch_size=24).stream([tmp_path / "gone.png", *paths], strategy=Fixed(8))
        assert next(stream).failure is not None


def test_classes_are_encoded_once_for_many_calls(monkeypatch):
    clf, asked = classifier(), []
    encode = clf.denoiser.condition
    monkeypatch.setattr(clf.denoiser, "condition", lambda classes: asked.append(tuple(classes)) or encode(classes))
    for labels in (LABELS, LABELS, LABELS[:2], LABELS):
        clf(pixels(), labels)
    assert asked == [tuple(LABELS), tuple(LABELS[:2]), tuple(LABELS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lumina2", "z-image"])
def test_what_pads_to_the_longest_prompt_is_not_compiled(name, model_folder):
    with pytest.raises(InputError, match="compiled anew for every length of prompts: leave --compile out"):
        load_denoiser(model_folder(name), device="cpu", dtype="float32").compile()


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_answers(model_folder, monkeypatch):
    """In batches of one size, also the last one, and without a compilation for the size that is being looked for."""
    folder = model_folder("class-unet")
    plain = DiffusionClassifier.from_pretrained(folder, dtype="float32", batch_size=8)
    compiled = DiffusionClassifier.from_pretrained(folder, dtype="float32", batch_size=8, compile_network=True)
    sizes, forward = [], compiled.denoiser.forward
    monkeypatch.setattr(compiled.denoiser, "forward", lambda *a: sizes.append(len(a[0])) or forward(*a))
    images = [pixels(i) for i in range(3)]
    strategy = Staged((3, 7), (2, 1))
    for result, expected in zip(
        compiled.classify(images, strategy=strategy), plain.classify(images, strategy=strategy), strict=True
    ):
        torch.testing.assert_close(result.errors, expected.errors, equal_nan=True, rtol=1e-4, atol=1e-5)
        assert result.num_evaluations == expected.num_evaluations == 17
    assert compiled.denoiser.compiled
    assert set(sizes) == {8}


class TestErrors:
    T = (100, 900, 500, 100)

    @pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
    def test_given_noise_is_used_exactly(self, paths, loss):
        """One plain loop over the denoiser, for the same noise."""
        clf, noise = classifier(batch_size=5), 2 * torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        actual = clf.errors(paths[:2], LABELS, timesteps=self.T, noise=noise, loss=loss)
        functional = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}[loss]
        expected = torch.empty(2, 3, 4)
        for b, path in enumerate(paths[:2]):
            x = preprocess(load_image(path).image, 4)
            for n, t in enumerate(torch.tensor(self.T)):
                alpha, sigma = clf.denoiser.schedule(t)
                noisy = (alpha * x + sigma * noise[n])[None]
                for c in range(3):
                    predicted = clf.denoiser.forward(noisy, t[None], clf.denoiser.condition([c]))[0]
                    expected[b, c, n] = functional(predicted, noise[n])
        torch.testing.assert_close(actual, expected)
        one = clf.errors(paths[1], [0, 1, 2], timesteps=self.T, noise=noise.double(), loss=loss)
        torch.testing.assert_close(one, expected[1])

    def test_numbers_of_numpy(self, paths):
        noise = torch.randn(4, 3, 4, 4)
        expected = classifier().errors(paths[0], [0, 2], timesteps=self.T, noise=noise)
        found = classifier().errors(paths[0], np.array([0, 2]), timesteps=np.array(self.T), noise=noise.numpy())
        assert torch.equal(found, expected)

    def test_without_noise_it_is_that_of_classify(self, paths):
        clf = classifier()
        (result,) = clf.classify(paths[0], timesteps="100,900,500,100", strategy=Fixed(4), seed=3)
        assert torch.equal(clf.errors(paths[0], LABELS, timesteps=self.T, seed=3), result.errors)
        assert (clf.errors(paths[0], LABELS, timesteps=self.T, seed=4) != result.errors).all()

    def test_a_class_is_the_prompt_itself_without_a_template(self, paths):
        clf = DiffusionClassifier(Scorer())
        clf.errors(paths[0], [" a pug, sitting ", "pug"], timesteps=[1])
        clf.errors(paths[0], ["pug", "boxer"], timesteps=[1], template="my {}!")
        assert clf.errors(paths[0], "a pug, or a boxer", timesteps=[1, 2]).shape == (1, 2)
        assert clf.denoiser.prompts == [[" a pug, sitting ", "pug"], ["my pug!", "my boxer!"], ["a pug, or a boxer"]]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"noise": torch.zeros(3, 3, 4, 4)}, r"\(3, 3, 4, 4\) was given; \(4, 3, 4, 4\) is needed"),
            ({"noise": torch.zeros(4, 3, 4)}, r"\(4, 3, 4\) was given"),
            ({"timesteps": []}, "one timestep"),
            ({"timesteps": [1, 2, 3, 1000]}, "0 to 999"),
            ({"timesteps": [1, 2, 3, 4.5]}, "whole numbers"),
            ({"classes": []}, "one class"),
            ({"classes": ["poodle"]}, "poodle"),
            ({"loss": "l3"}, "'l3'"),
            ({"template": "a {}"}, "no use for a template"),
            ({"image": "gone.png"}, "gone.png: there is no such file"),
            ({"image": []}, "no image was given"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, options, message):
        with pytest.raises(InputError, match=message):
            classifier().errors(**{"image": pixels(), "classes": LABELS, "timesteps": self.T, **options})

    @pytest.mark.parametrize("options", [{"loss": "l3"}, {"timesteps": [1, 2, 3, 1000]}])
    def test_loss_and_times_are_looked_at_before_the_network_is_tuned(self, monkeypatch, options):
        monkeypatch.setattr("diffusion_classifier.search.scorer.tune", lambda *_: pytest.fail("tuned"))
        with pytest.raises(InputError):
            classifier("auto").errors(**{"image": pixels(), "classes": LABELS, "timesteps": self.T, **options})

    def test_a_flow_may_have_fractional_times(self):
        clf = DiffusionClassifier(gaussian(2, size=4, schedule="flow", prediction_type="flow"))
        x, noise = preprocess(load_image(pixels()).image, 4), torch.ones(1, 3, 4, 4)
        noisy = 0.75 * x + 0.25 * noise
        predicted = noisy + 0.75 * clf.denoiser.forward(noisy, torch.tensor([250.0]), clf.denoiser.condition([1]))
        clf.denoiser.schedule = RectifiedFlow(1001)
        actual = clf.errors(pixels(), [1], timesteps=[250.25], noise=noise)
        assert float(actual) == pytest.approx(float(F.mse_loss(predicted, noise)), rel=1e-5)

    def test_a_failure_names_image_class_and_time(self, paths):
        clf = classifier()
        clf.denoiser.means = clf.denoiser.means.clone()
        clf.denoiser.means[1] = torch.nan
        with pytest.raises(InputError, match=r"1.png: .* class beagle at t = 100 is not finite in float32"):
            clf.errors(paths[1], LABELS, timesteps=self.T)
        (result,) = clf.classify(paths[1], timesteps="100")
        assert result.failure == "the prediction for class beagle at t = 100 is not finite in float32"
        assert result.label is None


class TestSequential:
    def test_the_models_own_calibration_serves_what_it_was_made_for(self):
        lags = [0.0] * 120
        defaults = ModelDefaults(
            strategy="sequential:9/0.01", loss="l1", timesteps="middle:0.5", lags=lags, classes=LABELS
        )
        clf = classifier()
        clf.denoiser.defaults = defaults
        own = clf.settings_for(LABELS[::-1])
        assert own.strategy == Sequential(9, 0.01, tuple(lags))
        assert clf.settings_for(LABELS, strategy="sequential:9/0.1").strategy == Sequential(9, 0.1, tuple(lags))
        for other in (
            {"strategy": "sequential:8"},
            {"strategy": "sequential:9", "loss": "l2"},
            {"strategy": "sequential:9", "timesteps": "even"},
        ):
            assert clf.settings_for(LABELS, **other).strategy.lags is None
        assert clf.settings_for(LABELS[:2]).strategy == Sequential(9, 0.01)
        with pytest.raises(InputError, match="at least 999 images; this one has 120"):
            clf.settings_for(LABELS, strategy="sequential:9/0.001")
        assert own.as_dict() == {
            "strategy": "sequential:9/0.01", "timesteps": "even:0.25-0.75", "loss": "l1", "weights": None, "seed": 0,
            "reduction": "sum", "temperature": 1.0, "prior": None,
        }  # fmt: skip

    def test_answers_as_all_draws_do_and_says_how_sure_it_is(self):
        clf = classifier()
        images = [pixels(i) for i in range(12)]
        whole = clf.classify(images, strategy=Fixed(64))
        results = clf.classify(images, strategy=Sequential(64, 0.05))
        assert sum(r.num_evaluations for r in results) < 0.7 * sum(r.num_evaluations for r in whole)
        for result, full in zip(results, whole, strict=True):
            assert result.label == full.label
            known = ~result.errors.isnan()
            torch.testing.assert_close(result.errors[known], full.errors[known])
            assert result.confidence >= 0.95 or result.undecided
            assert result.undecided == () or result.label in result.undecided
            assert 0.3 < result.score <= 1

    def test_the_same_classes_cannot_be_told_apart(self):
        base = gaussian(2, size=4)
        twins = Gaussian(base.means[[0, 0, 1]], base.variances[[0, 0, 1]], base.schedule)
        twins.class_names = LABELS
        (result,) = DiffusionClassifier(twins).classify(
            (base.means[0].movedim(0, 2) / 2 + 0.5).clamp(0, 1).numpy(), strategy="sequential:16"
        )
        assert set(LABELS[:2]) <= set(result.undecided)
        assert result.confidence == 0
        assert result.ties


class TestWeights:
    def test_times_without_weight_do_not_count(self):
        """Against the mean of the raw errors within the window, and with the draws of the window alone."""
        clf, image = classifier(), pixels()
        result = clf.classify(image, strategy="fixed:7", weights=lambda u: ((u > 0.2) & (u < 0.8)).double())[0]
        inside = [250.0, 375.0, 500.0, 625.0, 750.0]
        assert sorted(float(t) for t, w in zip(result.t, result.weights, strict=True) if w) == inside
        raw = result.errors[:, result.weights > 0]
        torch.testing.assert_close(result.posterior, log_posterior(mean_errors(raw), num_dimensions=D).exp())
        margin = (raw - raw[LABELS.index(result.label)]).double()
        torch.testing.assert_close(result.standard_error, margin.std(1) / 5**0.5)
        # As sure as five draws can be, not seven.
        winner = LABELS.index(result.label)
        tests = [ttest_rel(row, raw[winner], alternative="greater") for i, row in enumerate(raw) if i != winner]
        assert result.confidence == pytest.approx(1 - sum(test.pvalue for test in tests), abs=1e-4)
        torch.testing.assert_close(result.errors, clf.errors(image, LABELS, timesteps=result.t.tolist()))

    def test_strategies_see_weighted_errors(self):
        clf = classifier()
        images = [pixels(i) for i in range(8)]
        whole = clf.classify(images, strategy=Fixed(32), weights=[1, 0])
        for strategy in (Staged((24, 32), (2, 1)), Sequential(32, 0.01)):
            pruned = clf.classify(images, strategy=strategy, weights=[1, 0])
            assert [r.label for r in pruned] == [r.label for r in whole]
            assert sum(r.num_evaluations for r in pruned) < 8 * 32 * 3

    def test_a_search_without_calibration_heeds_draws_that_count(self):
        """The first ones do not."""
        images = [pixels(i) for i in range(6)]
        late = {"weights": lambda u: u > 0.6}
        whole = classifier().classify(images, strategy=Fixed(64), **late)
        results = classifier().classify(images, strategy=Sequential(64, 0.1), **late)
        assert [r.label for r in results] == [r.label for r in whole]
        assert sum(r.num_evaluations for r in results) < 0.9 * 6 * 64 * 3

    def test_a_models_own(self):
        clf = classifier()
        clf.denoiser.defaults = ModelDefaults(temperature=3.0, weights=[3.0, 1.0])
        for weights, found, temperature in (
            (None, (1.5, 0.5), 3.0), ("fitted", (1.5, 0.5), 3.0), ("uniform", None, 1.0), ((1, 1), (1.0, 1.0), 1.0),
        ):  # fmt: skip
            reading = clf.settings_for(LABELS, weights=weights)
            assert (reading.weights, reading.temperature) == (found, temperature)
        assert clf.settings_for(LABELS, loss="l1").weights is None
        with pytest.raises(InputError, match="fitted for the loss l2, not l1"):
            clf.settings_for(LABELS, loss="l1", weights="fitted")
        with pytest.raises(InputError, match="no timestep weights were fitted"):
            classifier().settings_for(LABELS, weights="fitted")

    def test_draws_that_all_weigh_nothing(self):
        with pytest.raises(InputError, match="times whose weight is 0"):
            classifier().stream([pixels()], strategy="fixed:3", timesteps="900,950", weights=lambda u: u < 0.5)
