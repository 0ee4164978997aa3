"""The bundled model as it is shipped."""

import json
from importlib import resources

import pytest

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.zoo import describe_bundled, load_sample


@pytest.fixture(scope="module")
def classifier():
    return DiffusionClassifier.from_pretrained("fashion", dtype="float32", batch_size=160)


def test_knows_its_photographs(classifier):
    """Chance is 4 of 40; of all test images it knows 90.8 %."""
    samples = load_sample(40)
    results = classifier.classify([sample.image for sample in samples])
    assert sum(r.label == s.label for r, s in zip(results, samples, strict=True)) >= 32
    assert all(abs(sum(r.scores.values()) - 1) < 1e-6 for r in results)


def test_classes_are_those_of_the_sample(classifier):
    assert set(classifier.denoiser.class_names) == {sample.label for sample in load_sample()}
    assert "fashion" in [row[0] for row in describe_bundled()]


def test_its_files_are_small_and_safe():
    files = [f for f in resources.files("diffusion_classifier.zoo").joinpath("fashion").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 20e6
    assert {f.suffix for f in files} == {".json", ".safetensors", ".md", ".png"}
    configs = [json.loads(f.read_text("utf-8")) for f in files if f.suffix == ".json"]
    assert len(configs) == 4
    assert not any("_name_or_path" in config for config in configs)  # a folder of whoever made it
