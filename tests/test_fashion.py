"""The bundled models of clothes as they are shipped."""

import json
from importlib import resources

import pytest

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data.fashion import load_sample
from diffusion_classifier.denoisers.known_models import describe_bundled

NUM_CONFIGS = {"fashion": 4, "fashion-fast": 5}


@pytest.fixture(scope="module", params=NUM_CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def classifier(name):
    return DiffusionClassifier.from_pretrained(name, dtype="float32", batch_size=160)


@pytest.mark.slow
def test_knows_its_photographs(classifier):
    """Chance is 4 of 40."""
    samples = load_sample(40)
    results = classifier.classify([sample.image for sample in samples])
    assert sum(r.label == s.label for r, s in zip(results, samples, strict=True)) >= 32
    assert all(abs(sum(r.scores.values()) - 1) < 1e-6 for r in results)


def test_classes_are_those_of_the_sample(name, classifier):
    assert set(classifier.denoiser.class_names) == {sample.label for sample in load_sample()}
    assert name in [row[0] for row in describe_bundled()]


def test_its_files_are_small_and_safe(name):
    files = [f for f in resources.files("diffusion_classifier").joinpath("zoo", name).rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 20e6
    assert {f.suffix for f in files} == {".json", ".safetensors", ".md", ".png"}
    configs = [json.loads(f.read_text("utf-8")) for f in files if f.suffix == ".json"]
    assert len(configs) == NUM_CONFIGS[name]
    assert not any("_name_or_path" in config for config in configs)  # a folder of whoever made it


def test_one_that_sees_the_class_late_costs_little():
    """Of what the published schedule takes: 2,750 predictions."""
    fast = DiffusionClassifier.from_pretrained("fashion-fast", dtype="float32", batch_size=160)
    results = fast.classify([sample.image for sample in load_sample(40)])
    assert sum(r.cost for r in results) / 40 < 8
