from importlib import import_module

import pytest
from contrastive_builders import build

from diffusion_classifier import InputError
from diffusion_classifier.baselines import Baseline, find_baseline, load_baseline
from diffusion_classifier.baselines.contrastive import Contrastive
from diffusion_classifier.baselines.load import BASELINES


def test_every_registered_class_has_the_members_of_the_protocol():
    members = {name for name in vars(Baseline) if not name.startswith("_")} | set(Baseline.__annotations__)
    assert {"logits_for", "recognizes", "fingerprint", "model_kind"} <= members
    for place in BASELINES:
        module, name = place.split(":")
        found = getattr(import_module(f"diffusion_classifier.baselines.{module}"), name)
        missing = members - set(dir(found))
        assert missing <= {"class_names"}, place  # which each instance has


def test_a_model_is_loaded_by_the_class_that_recognizes_it(tmp_path):
    build("clip", tmp_path)
    assert find_baseline(tmp_path) is find_baseline(tmp_path, "contrastive") is Contrastive
    assert find_baseline(tmp_path, "supervised") is None
    assert isinstance(load_baseline(tmp_path, device="cpu"), Contrastive)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("fashion", None, "fashion is not a model that classifies in one pass"),
        ("nowhere", "contrastive", "nowhere is not a contrastive model that classifies in one pass"),
    ],
)
def test_models_that_are_rejected(source, kind, message):
    with pytest.raises(InputError, match=message):
        load_baseline(source, kind)
