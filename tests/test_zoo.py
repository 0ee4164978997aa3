import json
from collections import Counter
from importlib import resources

import datasets
import pytest

from diffusion_classifier.data import fashion
from diffusion_classifier.denoisers import known_models

SAMPLE = resources.files("diffusion_classifier") / "zoo" / "fashion_sample.parquet"


def test_the_sample_has_100_images_of_each_class():
    samples = fashion.load_sample()
    assert len(samples) == 1000
    assert set(Counter(sample.label for sample in samples).values()) == {100}
    assert len({sample.label for sample in samples}) == 10
    indices = [sample.index for sample in samples]
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < 10_000
    for sample in samples:
        sample.image.load()
        assert (sample.image.mode, sample.image.size) == ("L", (28, 28))
    assert len({sample.image.tobytes() for sample in samples}) > 990


@pytest.mark.parametrize("limit", [0, 16])
def test_the_first_samples(limit):
    some = fashion.load_sample(limit)
    assert [sample.index for sample in some] == [sample.index for sample in fashion.load_sample()[:limit]]


def test_datasets_reads_the_sample(tmp_path):
    table = datasets.load_dataset("parquet", data_files=str(SAMPLE), split="train", cache_dir=str(tmp_path))
    assert isinstance(table.features["image"], datasets.Image)
    assert len(table) == 1000
    for row, sample in zip(table.select([0, 500, 999]), [fashion.load_sample()[i] for i in (0, 500, 999)], strict=True):
        assert row["image"].tobytes() == sample.image.tobytes()
        assert (row["label"], row["index"]) == (sample.label, sample.index)


def test_bundled_models_are_described_without_loading_them(tmp_path, monkeypatch):
    settings = {"class_names": ["a", "b"], "patch_size": 1, "licence": "MIT"}
    (tmp_path / "diffusion_classifier.json").write_text(json.dumps(settings))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    monkeypatch.setattr(known_models, "bundled_models", lambda: {"m": tmp_path})
    assert known_models.describe_bundled() == [("m", "class-unet", "a, b", "MIT")]


def test_known_models_are_hub_ids():
    for name, *rest in known_models.KNOWN:
        assert name.count("/") == 1
        assert len(rest) == 3
        assert all(rest)
