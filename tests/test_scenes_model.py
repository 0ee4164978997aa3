"""The bundled text-to-image model as it is shipped, and the contrastive one whose text encoder it shares."""

import json
from importlib import resources

import pytest
import torch
from safetensors.torch import load_file

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.baselines.contrastive import Contrastive
from diffusion_classifier.denoisers.known_models import describe_bundled
from diffusion_classifier.tasks.scene_tasks import open_nouns, open_pairs

FOLDER = resources.files("diffusion_classifier") / "zoo" / "scenes"


@pytest.fixture(scope="module")
def classifier():
    return DiffusionClassifier.from_pretrained("scenes", dtype="float32")


@pytest.mark.slow
def test_knows_nouns(classifier):
    """Chance is 3 of 30."""
    source = open_nouns()
    rows = range(30)
    results = classifier.classify([source.read(i) for i in rows], source.class_names, template="a {}")
    assert sum(r.label == source.class_names[source.labels[i]] for i, r in zip(rows, results, strict=True)) >= 22


@pytest.mark.slow
def test_binds_words_to_things(classifier):
    """Both images of a pair, whose captions have the same words: chance is 4 of 16."""
    source = open_pairs()
    right = []
    options = {"strategy": "fixed:32", "timesteps": "even:0.75-1", "weights": "training"}  # as its card has it
    for i in range(32):
        (result,) = classifier.classify([source.read(i)], source.captions[i], **options)
        right.append(result.label == source.captions[i][source.truth[i]])
    assert sum(a and b for a, b in zip(right[::2], right[1::2], strict=True)) >= 9


def test_contrastive_and_diffusion_model_share_the_text_encoder():
    diffusion = load_file(FOLDER / "text_encoder/model.safetensors")
    contrastive = load_file(FOLDER / "contrastive/model.safetensors")
    assert diffusion
    for name, weight in diffusion.items():
        assert torch.equal(weight, contrastive[f"text_model.{name.removeprefix('text_model.')}"])
    model = Contrastive.from_pretrained("scenes/contrastive", device="cpu")
    source = open_nouns()
    texts = model.encode_texts([f"a {name}" for name in source.class_names])
    rows = range(200)
    chosen = [int(model.logits(model.encode_image(source.read(i)), texts).argmax()) for i in rows]
    assert sum(c == source.labels[i] for i, c in zip(rows, chosen, strict=True)) >= 140


def test_its_files_are_small_and_safe():
    assert "scenes" in [row[0] for row in describe_bundled()]
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 40e6
    assert {f.suffix for f in files} == {".json", ".safetensors", ".md", ".png"}
    configs = [json.loads(f.read_text("utf-8")) for f in files if f.suffix == ".json"]
    assert not any("_name_or_path" in config for config in configs)  # a folder of whoever made it
