"""Keyword arguments: what is unknown is rejected before anything is done."""

import numpy as np
import pytest
from gaussians import gaussian

from diffusion_classifier import DiffusionClassifier, InputError

IMAGE = np.zeros((4, 4, 3), dtype=np.uint8)
CALLS = {
    "__call__": (IMAGE,),
    "classify": (IMAGE,),
    "stream": (IMAGE,),
    "enumerated": (IMAGE,),
    "score": (IMAGE, ["0", "1"]),
    "stream_scores": (IMAGE, ["0", "1"]),
    "choices": ([IMAGE], [["0", "1"]]),
    "settings_for": (["0", "1"],),
}


@pytest.fixture
def clf(monkeypatch):
    clf = DiffusionClassifier(gaussian(3, size=4), batch_size=8)
    monkeypatch.setattr(clf.denoiser, "condition", lambda *_: pytest.fail("classes were encoded"))
    monkeypatch.setattr(clf.denoiser, "encode", lambda *_: pytest.fail("an image was encoded"))
    return clf


@pytest.mark.parametrize("method", CALLS)
def test_a_misspelt_option_is_rejected_with_a_suggestion(clf, method):
    with pytest.raises(InputError, match=rf"{method} has no option 'tempature': did you mean temperature\?"):
        getattr(clf, method)(*CALLS[method], tempature=2.0)


def test_of_raw_errors_too(clf):
    with pytest.raises(InputError, match=r"errors has no option 'timestep': did you mean timesteps\?"):
        clf.errors(IMAGE, [0], timestep=[1])


def test_of_loading_too(monkeypatch):
    monkeypatch.setattr("diffusion_classifier.classifier.load_denoiser", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=r"from_pretrained has no option 'devise': did you mean device\?"):
        DiffusionClassifier.from_pretrained("fashion", devise="cpu")
    with pytest.raises(InputError, match=r"from_pretrained has no option 'lora': did you mean loras\?"):
        DiffusionClassifier.from_pretrained("fashion", lora=["x"])


def test_without_a_similar_one_all_are_named(clf):
    with pytest.raises(InputError, match=r"settings_for has no option 'zzz': it takes class_names, .*strategy.*"):
        clf.settings_for(["0", "1"], zzz=1)


def test_a_number_of_draws_takes_the_place_of_a_strategy_for_captions(clf):
    with pytest.raises(InputError, match="score has no option 'strategy'"):
        clf.score(IMAGE, ["0", "1"], strategy="fixed:4")
