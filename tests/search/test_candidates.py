"""Several prompts a class, ready encodings, the null condition."""

import numpy as np
import pytest
import torch

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.denoisers import Conditioning, load_denoiser
from diffusion_classifier.denoisers import text_conditional as text
from diffusion_classifier.errors import InputError

NAMES = ["dog", "cat", "moon"]
TEMPLATES = ["a {}", "the {}s", "{}"]
TIMES = [100, 400, 700]
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def load(model_folder, name="sd-epsilon", batch_size=64):
    return DiffusionClassifier.from_pretrained(model_folder(name), device="cpu", dtype="float32", batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_errors_are_averaged_over_prompts(model_folder, batch_size):
    clf = load(model_folder, batch_size=batch_size)
    found = clf.errors(IMAGE, NAMES, timesteps=TIMES, template=TEMPLATES)
    each = [clf.errors(IMAGE, NAMES, timesteps=TIMES, template=template) for template in TEMPLATES]
    torch.testing.assert_close(found, torch.stack(each).mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(each[0], each[1], rtol=1e-3)


def test_every_prediction_is_counted(model_folder):
    clf = load(model_folder)
    one, three = (
        clf.classify(IMAGE, NAMES, template=template, strategy="fixed:4")[0] for template in (TEMPLATES[:1], TEMPLATES)
    )
    assert (one.num_evaluations, three.num_evaluations) == (12, 36)
    assert 12 < 3 * one.cost > three.cost > one.cost  # rows of one latent share work
    single = clf.classify(IMAGE, NAMES, template=TEMPLATES[0], strategy="fixed:4")[0]
    assert torch.equal(single.errors, one.errors)


def test_elimination_with_several_prompts(model_folder):
    clf = load(model_folder, batch_size=5)
    full = clf.classify(IMAGE, NAMES, template=TEMPLATES, strategy="fixed:8")[0]
    staged = clf.classify(IMAGE, NAMES, template=TEMPLATES, strategy="staged:4,8/2,1")[0]
    assert staged.num_evaluations == 3 * (4 * 3 + 4 * 2)
    known = ~staged.errors.isnan()
    torch.testing.assert_close(staged.errors[known], full.errors[known], rtol=1e-4, atol=1e-6)


def test_embeddings_are_averaged(model_folder):
    clf = load(model_folder)
    prompts = [[template.format(name) for template in TEMPLATES] for name in NAMES]
    mean = torch.stack([clf.denoiser.condition(p).tensors["prompt_embeds"].mean(0) for p in prompts])
    options = {"strategy": "fixed:4"}
    found = clf.classify(IMAGE, NAMES, template=TEMPLATES, average="embedding", **options)[0]
    ready = clf.classify(IMAGE, NAMES, conditioning=Conditioning({"prompt_embeds": mean}), **options)[0]
    torch.testing.assert_close(found.errors, ready.errors, rtol=1e-4, atol=1e-6)
    assert found.num_evaluations == 12


def test_masks_are_joined_where_embeddings_are_averaged():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    numbers = torch.arange(4.0)[:, None]
    averaged = Conditioning({"mask": mask, "numbers": numbers}, num_prompts=2).averaged()
    assert averaged.tensors["mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert averaged.tensors["numbers"].tolist() == [[0.5], [2.5]]


def test_each_token_is_averaged_over_the_prompts_that_have_it():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    embeds = torch.tensor([[[1.0], [2.0], [9.0]], [[3.0], [9.0], [9.0]]])
    averaged = Conditioning({"mask": mask, "prompt_embeds": embeds}, num_prompts=2).averaged()
    assert averaged.tensors["prompt_embeds"].flatten().tolist() == [2, 2, 0]


@pytest.mark.parametrize("bytes_on_device", [0, 2**31])
def test_encodings_may_be_kept_elsewhere(model_folder, monkeypatch, bytes_on_device):
    """On the CPU, from which a network's rows are taken as they are needed: there is but one device here."""
    monkeypatch.setattr(text, "_ON_DEVICE", bytes_on_device)
    monkeypatch.setattr(text, "_PROMPT_BATCH", 2)
    clf = load(model_folder)
    expected = load(model_folder).errors(IMAGE, NAMES, timesteps=TIMES)
    torch.testing.assert_close(clf.errors(IMAGE, NAMES, timesteps=TIMES), expected)


def test_fewer_prompts_at_once_where_memory_does_not_suffice(model_folder, monkeypatch):
    denoiser, sizes = load(model_folder).denoiser, []
    encode = denoiser.encode_prompts

    def little_memory(prompts):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return encode(prompts)

    expected = denoiser.condition([*NAMES, "sun", "sea"]).tensors["prompt_embeds"]
    monkeypatch.setattr(denoiser, "encode_prompts", little_memory)
    found = denoiser.condition([*NAMES, "sun", "sea"]).tensors["prompt_embeds"]
    torch.testing.assert_close(found, expected)
    assert sizes[-3:] == [2, 2, 1]


def test_encodings_that_overflow(model_folder, monkeypatch):
    denoiser = load(model_folder).denoiser
    monkeypatch.setattr(denoiser, "encode_prompts", lambda _: {"prompt_embeds": torch.full((1, 2), torch.nan).half()})
    with pytest.raises(InputError, match="not finite in float16"):
        denoiser.condition(["a dog"])


def test_ready_encodings_answer_as_the_prompts_do(model_folder):
    clf = load(model_folder)
    conditioning = clf.denoiser.condition(["a dog", "a cat"])
    ready = clf.classify(IMAGE, "dog,cat", conditioning=conditioning, strategy="fixed:4")[0]
    prompted = clf.classify(IMAGE, "dog,cat", template="a {}", strategy="fixed:4")[0]
    assert ready.label == prompted.label
    assert torch.equal(ready.errors, prompted.errors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": []}, "at least one template"),
        ({"template": ["a {}", "a"]}, "'a' must hold"),
        ({"template": ["a {}"], "average": "loss"}, "error or embedding; got 'loss'"),
        ({"conditioning": Conditioning({"prompt_embeds": torch.zeros(2, 24, 16)})}, "3 names .* of 2 classes"),
        ({"conditioning": Conditioning({"pooled": torch.zeros(3, 16)})}, "hold pooled; this model needs prompt_embeds"),
        ({"conditioning": Conditioning({"x": torch.zeros(3)}), "template": "a {}"}, "no template"),
    ],
)
def test_mistakes(model_folder, options, message):
    with pytest.raises(InputError, match=message):
        load(model_folder).classify(IMAGE, NAMES, **options)


def test_ready_encodings_need_names(model_folder):
    clf = load(model_folder)
    with pytest.raises(InputError, match="need the names of the classes"):
        clf.classify(IMAGE, conditioning=clf.denoiser.condition(NAMES))


def test_the_null_condition_is_what_guidance_compares_with(model_folder):
    """Zeros where the pipeline says so, else the empty prompt; the row without a class."""
    zeros = load_denoiser(model_folder("sdxl"), device="cpu", dtype="float32").null_condition()
    assert all(not tensor.any() for tensor in zeros.tensors.values())
    assert {name: len(tensor) for name, tensor in zeros.tensors.items()} == {"prompt_embeds": 1, "pooled": 1}
    sd3 = load_denoiser(model_folder("sd3"), device="cpu", dtype="float32")
    sana = load_denoiser(model_folder("sana"), device="cpu", dtype="float32")
    _, _, embeds, mask = sana.pipeline.encode_prompt(["a dog"], negative_prompt="")
    null, empty = sana.null_condition().tensors, sana.condition([""]).tensors
    torch.testing.assert_close(null["prompt_embeds"], embeds)
    assert torch.equal(null["mask"], mask)
    assert not torch.allclose(null["prompt_embeds"], empty["prompt_embeds"])  # which follows an instruction
    for name, tensor in sd3.null_condition().tensors.items():
        torch.testing.assert_close(tensor, sd3.condition([""]).tensors[name])
    assert load_denoiser(model_folder("dit")).null_condition().tensors["class_labels"].tolist() == [11]
    assert load_denoiser(model_folder("class-unet")).null_condition().tensors["class_labels"].tolist() == [3]
