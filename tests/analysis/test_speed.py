import json

import pytest
import torch
from gaussians import gaussian

from diffusion_classifier import DiffusionClassifier, Fixed, InputError, Staged
from diffusion_classifier.analysis import speed
from diffusion_classifier.analysis.speed import bench as measure
from diffusion_classifier.analysis.speed import num_evaluations, peak_tflops
from diffusion_classifier.cli import app


@pytest.fixture
def classifier(model_folder):
    return DiffusionClassifier.from_pretrained(model_folder("sd-epsilon"), dtype="float32", batch_size=8)


@pytest.mark.parametrize(
    ("strategy", "num_classes"),
    [(Fixed(3), 4), (Staged((2, 5), (2, 1)), 4), (Staged((1, 2, 9), (7, 3, 1)), 12), (Staged((4,), (1,)), 3)],
    ids=str,
)
def test_evaluations_are_what_the_strategy_asks_for(strategy, num_classes):
    state, spent = strategy.init(num_classes), 0
    while (request := strategy.propose(state)) is not None:
        errors = torch.rand(len(request.classes), len(request.draws), generator=torch.Generator().manual_seed(spent))
        spent += errors.numel()
        state = strategy.update(state, errors)
    assert num_evaluations(strategy, num_classes) == spent


def test_evaluations_of_the_published_schedules():
    """Appendix of the paper: CIFAR-10 2,750; ImageNet 50·1000 + 50·500 + 400·50 + 500·10 = 100,000."""
    cifar, _, imagenet = (speed.parse_strategy(s) for s in speed.PUBLISHED)
    assert num_evaluations(cifar, 10) == 2750
    assert num_evaluations(imagenet, 1000) == 100_000
    assert num_evaluations(imagenet, 100) is None


def test_figures_fit_each_other(classifier, monkeypatch):
    calls = []
    monkeypatch.setattr(speed, "seconds_of_call", lambda *a: calls.append(a[2]) or 0.5)
    monkeypatch.setattr(speed, "peak_tflops", lambda *_: 2.0)
    monkeypatch.setattr(speed, "seconds_of_encoding", lambda _: 0.125)
    result = measure(classifier, "tiny", ["fixed:4", "staged:2,8/20,1"], num_classes=[10, 100])
    assert calls == [8]
    assert (result.batch_size, result.evaluations_per_second, result.dtype) == (8, 16, "float32")
    # 8 rows of one latent: the shared part is done once.
    assert result.tflops_per_second == pytest.approx(result.gflops / 1e3 * (8 - 7 * result.share) / 0.5)
    assert 0.05 < result.share < 0.9
    assert result.utilisation == pytest.approx(result.tflops_per_second / 2)
    assert result.seconds_per_image[10] == {"fixed:4": 0.125 + 40 / 16}
    assert result.seconds_per_image[100] == {
        "fixed:4": 0.125 + 400 / 16,
        "staged:2,8/20,1": 0.125 + (200 + 6 * 20) / 16,
    }


def test_a_model_that_knows_few_words(model_folder, monkeypatch):
    monkeypatch.setattr(speed, "peak_tflops", lambda *_: 2.0)
    clf = DiffusionClassifier.from_pretrained(model_folder("sd-epsilon"), device="cpu", dtype="float32", batch_size=2)
    clf.denoiser.words = frozenset(("cat", "dog"))
    assert measure(clf, "tiny", ["fixed:1"]).evaluations_per_second > 0


def test_peak_is_a_rate():
    assert 1e-4 < peak_tflops(torch.device("cpu"), torch.float32, repeats=1) < 1e4


def test_a_closed_form_is_refused():
    with pytest.raises(InputError, match="thing has no network"):
        measure(DiffusionClassifier(gaussian()), "thing")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_command(model_folder, capsys, options, monkeypatch):
    monkeypatch.setattr(speed, "peak_tflops", lambda *_: 2.0)
    app(["bench", "--model", str(model_folder("class-unet")), "--dtype", "float32", *options], standalone_mode=False)
    out = capsys.readouterr().out
    if options:
        result = json.loads(out)
        assert result["family"] == "class-unet"
        assert result["share"] == 0
        few, many = (result["seconds_per_image"][k]["sequential:64/0.01, at most"] for k in ("10", "1000"))
        assert many > few > 0
        assert (
            0 < result["utilisation"] == pytest.approx(result["tflops_per_second"] / result["peak_tflops_per_second"])
        )
    else:
        assert "seconds per image" in out
        assert "100 classes" in out
