"""Contrastive models, saved and loaded, against the models' own forward."""

import json

import numpy as np
import pytest
import torch
from builders import MAX_TOKENS, edit_json
from contrastive_builders import build
from evaluations import pairs, pixels, single
from PIL import Image

from diffusion_classifier.baselines.contrastive import Contrastive
from diffusion_classifier.baselines.load import kind_of
from diffusion_classifier.data.labelled import LabelledSource
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.evaluation import evaluate
from diffusion_classifier.runs.evaluators import BaselineEvaluator
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows
from diffusion_classifier.runs.summary import compare, summarize

TEXTS = ["a dog", "a cat on a mat", "the moon"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Kind → folder, and what was saved to it."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("clip", "siglip")}
    return {kind: (folder, *build(kind, folder)) for kind, folder in folders.items()}


def load(built, kind="clip"):
    return Contrastive.from_pretrained(built[kind][0], device="cpu")


@torch.inference_mode()
def expected(built, kind, image, texts):
    """By the model's own forward, one text at a time."""
    _, model, tokens, images = built[kind]
    values = images(images=image, return_tensors="pt")["pixel_values"]
    inputs = [dict(tokens([t], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")) for t in texts]
    if kind == "siglip":  # was trained without
        inputs = [{"input_ids": i["input_ids"]} for i in inputs]
    return torch.cat([model(pixel_values=values, **i).logits_per_image[0] for i in inputs])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_the_models_own(built, kind):
    clip = load(built, kind)
    texts = clip.encode_texts(TEXTS)
    for i in range(3):
        image = Image.fromarray(pixels(i)[:, :14])
        found = clip.logits(clip.encode_image(image), texts)
        torch.testing.assert_close(found, expected(built, kind, image, TEXTS), rtol=1e-4, atol=1e-5)
    assert (clip.image_size, clip.max_tokens, clip.dtype) == (12, MAX_TOKENS, torch.float32)


def test_clip_does_not_see_what_texts_are_filled_up_with(built):
    _, model, tokens, _ = built["clip"]
    with torch.inference_mode():
        own = model.get_text_features(**tokens(["a dog"], return_tensors="pt")).pooler_output[0]
    torch.testing.assert_close(load(built).encode_texts(["a dog"])[0], own / own.norm(), rtol=1e-4, atol=1e-6)


def test_texts_are_read_in_batches(built, monkeypatch):
    clip = load(built)
    whole = clip.encode_texts(TEXTS)
    monkeypatch.setattr("diffusion_classifier.baselines.contrastive._TEXTS", 2)
    torch.testing.assert_close(clip.encode_texts(TEXTS), whole)


@torch.inference_mode()
def test_embeddings_of_several_templates_are_averaged(built):
    """And brought to length 1 again, as CLIP's authors do."""
    _, model, tokens, images = built["clip"]
    image, templates = Image.fromarray(pixels(0)), ("a photo of a {}", "the {}.")
    found = load(built).logits_for(["cat", "dog"], templates)(image, [1, 0])
    values = images(images=image, return_tensors="pt")["pixel_values"]
    embedded = torch.nn.functional.normalize(model.get_image_features(pixel_values=values).pooler_output)[0]
    for logit, name in zip(found, ("dog", "cat"), strict=True):
        texts = []
        for template in templates:
            inputs = tokens([template.format(name)], padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
            texts.append(torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output)[0])
        mean = sum(texts) / 2
        expected = model.logit_scale.exp() * embedded @ mean / mean.norm()
        torch.testing.assert_close(logit, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_that_are_too_long_are_refused(built, kind):
    clip = load(built, kind)
    clip.encode_texts(["x" * (MAX_TOKENS - 2)])
    with pytest.raises(InputError, match=f"is 1 tokens too long: it has {MAX_TOKENS + 1}, start and end included"):
        clip.encode_texts(["x" * (MAX_TOKENS - 1)])


def test_files_that_are_recognized(built, model_folder, tmp_path):
    assert all(kind_of(folder) == "contrastive" for folder, *_ in built.values())
    for other in ("fashion", "no/model", "neither", model_folder("sd-epsilon"), tmp_path, __file__):
        assert not kind_of(other)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert not kind_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not kind_of(tmp_path)
    heads = ["CLIPForImageClassification"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": heads}))
    assert kind_of(tmp_path) == "supervised"


def test_a_hub_id_is_known_by_its_config(built, monkeypatch):
    def download(source, name):
        assert (source, name) == ("openai/clip", "config.json")
        return str(built["clip"][0] / name)

    monkeypatch.setattr("diffusion_classifier.baselines.pretrained.hf_hub_download", download)
    assert kind_of("openai/clip") == "contrastive"


def test_folders_that_are_refused(tmp_path):
    build("clip", tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    build("clip", tmp_path / "code")
    (tmp_path / "code" / "modeling.py").touch()
    build("clip", tmp_path / "larger")
    edit_json(tmp_path / "larger" / "config.json", projection_dim=9)
    build("clip", tmp_path / "silent")
    (tmp_path / "silent" / "preprocessor_config.json").unlink()
    for name, message in (
        ("pickled", "has its weights not in "),
        ("code", "code that comes with a model is not run"),
        ("larger", "cannot be loaded"),
        ("silent", "cannot be loaded"),
        ("no/model", "no/model cannot be loaded"),
    ):
        source = name if "/" in name else tmp_path / name
        with pytest.raises(InputError, match=message):
            Contrastive.from_pretrained(source, device="cpu")


def run(built, source, folder, kind="clip", **question):
    list(evaluate(load(built, kind), source, folder, BaselineEvaluator(**question), model="c"))
    return {row["id"]: row for row in read_rows(folder).to_pylist()}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_rows_of_pairs(built, tmp_path, kind):
    found = run(built, pairs(8), tmp_path / "run", kind)
    logits = {}
    for i, id_ in enumerate(pairs(8).ids):
        row, captions = found[id_], pairs(8).captions[i]
        logits[id_] = expected(built, kind, pixels(i), captions).double()
        np.testing.assert_allclose(row["match_scores"], logits[id_], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(row["posterior"], torch.tensor(row["match_scores"]).double().softmax(0), rtol=1e-5)
        assert row["prediction"] == captions[int(np.argmax(row["match_scores"]))]
        assert (row["truth"], row["num_evaluations"], row["errors"]) == (captions[i % 2], 0, None)
    fits = [[np.array(found[f"{e}/{k}"]["match_scores"]) for k in (0, 1)] for e in range(8)]
    image = [a[0] > b[0] and b[1] > a[1] for a, b in fits]
    text = [a[0] > a[1] and b[1] > b[0] for a, b in fits]
    summary = summarize(tmp_path / "run")
    shares = summary.composition.overall.shares
    group = np.mean(np.logical_and(text, image))
    assert [shares[n][0] for n in ("text", "image", "group")] == [np.mean(text), np.mean(image), group]
    assert summary.composition.note == "the model's logits"
    spec = read_spec(tmp_path / "run")
    assert (spec.model_kind, spec.strategy, spec.kind, spec.num_images) == ("contrastive", "one-pass", "pairs", 16)


def test_broken_off_and_gone_on_with(built, tmp_path):
    whole = run(built, single(), tmp_path / "whole")
    begun = evaluate(load(built), single(), tmp_path / "run", BaselineEvaluator())
    next(begun)
    begun.close()
    found = run(built, single(), tmp_path / "run")
    assert {i: row | {"seconds": 0} for i, row in found.items()} == {
        i: row | {"seconds": 0} for i, row in whole.items()
    }


def test_images_that_cannot_be_read_and_ties(built, tmp_path):
    from dataclasses import replace

    source = replace(single(read=lambda i: b"" if i == 1 else pixels(i)), captions=(("a dog", "A Dog"),) * 4)
    found = run(built, source, tmp_path / "run")
    assert (found["x"]["status"], found["w"]["prediction"]) == ("failed", None)
    assert not found["x"]["reason"].startswith("x: ")
    assert summarize(tmp_path / "run").accuracy[0] == 0


def test_classes_and_a_comparison(built, tmp_path, model_folder):
    from diffusion_classifier import DiffusionClassifier
    from diffusion_classifier.runs.evaluators import ClassEvaluator

    source = LabelledSource("photos", ("cat", "dog", "door"), (0, 1, 2, 0), tuple("abcd"), pixels)
    found = run(built, source, tmp_path / "clip", template="a photo of a {}.")
    prompts = [f"a photo of a {name}." for name in source.class_names]
    for i, id_ in enumerate(source.ids):
        logits = expected(built, "clip", pixels(i), prompts).double()
        np.testing.assert_allclose(found[id_]["posterior"], logits.softmax(0), rtol=1e-3)
        np.testing.assert_allclose(found[id_]["match_scores"], logits, rtol=1e-3, atol=1e-4)
        assert found[id_]["truth"] == source.class_names[source.labels[i]]
    clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", batch_size=8)
    list(evaluate(clf, source, tmp_path / "diffusion", ClassEvaluator(options={"strategy": "fixed:2"})))
    assert compare(tmp_path / "clip", tmp_path / "diffusion").num_images == 4
    assert summarize(tmp_path / "clip").num_evaluations == 0
