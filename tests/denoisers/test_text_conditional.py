"""Prompts: token limits of each tokenizer, and errors of pipelines that lack a part."""

import shutil

import pytest
import torch
from builders import MAX_TOKENS, edit_json
from diffusers import DDIMScheduler
from text_builders import TEXT_BUILDERS, stable_diffusion_xl

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.errors import InputError

LIMITS = {  # letters of the longest prompt: tokens that the pipeline reads by default, less start and end
    "sdxl": MAX_TOKENS - 2,
    "playground": MAX_TOKENS - 2,
    "lcm": MAX_TOKENS - 2,
    "if": 77 - 2,  # T5's start of a word, and its end
    "pixart": 300 - 2,
    "pixart-alpha": 120 - 2,
    "sd3": MAX_TOKENS - 2,
    "sd3-without-t5": MAX_TOKENS - 2,
    "flux-dev": MAX_TOKENS - 2,
    "flux-schnell": MAX_TOKENS - 2,
    "z-image": 512 - len("[user][assistant]"),
}


def load(folder, **options):
    return load_denoiser(folder, device="cpu", dtype="float32", **options)


@pytest.mark.parametrize("name", TEXT_BUILDERS)
def test_the_longest_prompt_is_read_and_none_is_cut_short(name, model_folder):
    denoiser = load(model_folder(name))
    longest = LIMITS.get(name)
    if longest is None:  # after an instruction, which is of any length
        ((tokenizer, limit),) = denoiser.token_limits()
        longest = limit - len(tokenizer(denoiser.as_read([""])[0]).input_ids)
    encoded = denoiser.condition(["x" * longest, "x" * (longest - 1) + "y"]).tensors.values()
    assert all(len(tensor) == 2 for tensor in encoded)
    assert not torch.equal(*next(iter(encoded)))  # the last letter counts
    for too_long in (1, 30):
        with pytest.raises(InputError, match=rf"is {too_long} tokens too long: it has"):
            denoiser.condition(["x", "x" * (longest + too_long)])


def test_every_tokenizer_has_a_limit_of_its_own(model_folder):
    """Flux takes 512 T5 tokens, but CLIP's limit is lower. If CLIP takes more, T5's limit applies."""
    denoiser = load(model_folder("flux-schnell"))
    assert [limit for _, limit in denoiser.token_limits()] == [MAX_TOKENS, 256]
    assert [limit for _, limit in load(model_folder("flux-dev")).token_limits()] == [MAX_TOKENS, 512]
    denoiser.pipeline.tokenizer.model_max_length = 10_000
    with pytest.raises(InputError, match="1 tokens too long: it has 257"):
        denoiser.condition(["x" * 255])


@pytest.mark.parametrize("name", TEXT_BUILDERS)
def test_indices_are_no_prompts(name, model_folder):
    with pytest.raises(InputError, match="reads text"):
        load(model_folder(name)).condition([0, 1])


def test_t5_can_be_left_out(model_folder):
    """Zeros replace it, as if it had never been saved."""
    without = load(model_folder("sd3"), without=("text_encoder_3", "tokenizer_3"))
    embeds = without.condition(["a dog"]).tensors["prompt_embeds"]
    assert embeds.shape == (1, MAX_TOKENS + 256, 32)
    assert not embeds[:, MAX_TOKENS:].any()
    full = load(model_folder("sd3")).condition(["a dog"]).tensors["prompt_embeds"]
    assert full[:, MAX_TOKENS:].any()
    torch.testing.assert_close(embeds[:, :MAX_TOKENS], full[:, :MAX_TOKENS])


@pytest.mark.parametrize(
    ("name", "without", "message"),
    [
        ("sd3", ["vae"], "'vae' cannot be left out .* tokenizer_3"),
        ("class-unet", ["unet"], "which is none"),
    ],
)
def test_what_cannot_be_left_out(name, without, message, model_folder):
    with pytest.raises(InputError, match=message):
        load(model_folder(name), without=without)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sd-epsilon", "text_encoder"),
        ("flux-dev", "text_encoder_2"),
        ("sd3", "tokenizer_2"),
        ("sdxl", "text_encoder_2"),
        ("sdxl", "tokenizer"),
    ],
)
def test_a_pipeline_without_a_text_encoder(name, part, model_folder, tmp_path):
    folder = shutil.copytree(model_folder(name), tmp_path / name)
    edit_json(folder / "model_index.json", **{part: [None, None]})
    denoiser = load(folder)
    with pytest.raises(InputError, match=f"no {part}, so that it cannot read class names"):
        denoiser.condition(["a dog"])


def test_images_of_another_size(model_folder):
    denoiser = load(model_folder("sdxl"), image_size=24)
    assert (denoiser.image_size, denoiser.latent_shape) == (24, (4, 12, 12))
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    noisy, t = denoiser.encode(image), torch.tensor([500])
    predicted = denoiser.predict_noise(noisy, t, denoiser.condition(["a dog"]), torch.tensor([0]))
    # The network is told that size.
    embeds, pooled = denoiser.condition(["a dog"]).tensors.values()
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[24.0, 24, 0, 0, 24, 24]])}
    expected = denoiser.network(noisy, t, encoder_hidden_states=embeds, added_cond_kwargs=added).sample
    torch.testing.assert_close(predicted, expected)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("sdxl", 17, "multiple of 2 .* got 17"),
        ("flux-dev", 18, "multiple of 4"),
        ("z-image", 18, "multiple of 4"),
        ("sd3", 52, "48 pixels at most along an edge; got 52"),
        ("dit", 32, "16 pixels only; 32"),
        ("class-unet", 8, "16 pixels only"),
    ],
)
def test_sizes_that_cannot_be(name, size, message, model_folder):
    with pytest.raises(InputError, match=message):
        load(model_folder(name), image_size=size)


def test_the_refiner_of_sdxl_is_refused(tmp_path):
    """It takes an aesthetic score instead of a size: five numbers, not six."""
    stable_diffusion_xl(tmp_path, unet={"projection_class_embeddings_input_dim": 5 * 8 + 16})
    with pytest.raises(InputError, match="refiner"):
        load(tmp_path)


def test_a_unet_that_is_not_of_sdxl(tmp_path):
    stable_diffusion_xl(tmp_path, unet={"addition_embed_type": None})
    with pytest.raises(InputError, match="addition_embed_type None"):
        load(tmp_path)


def test_a_flow_with_the_scheduler_of_something_else(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("sd3"), tmp_path / "sd3")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(InputError, match="DDIMScheduler is not a scheduler of flows"):
        load(folder)


def test_latents_of_other_channels(tmp_path):
    stable_diffusion_xl(tmp_path, unet={"in_channels": 9})
    with pytest.raises(InputError, match="9 channels where a latent has 4"):
        load(tmp_path)


def test_weights_that_are_not_numbers_are_an_answer_with_a_reason(model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    from diffusion_classifier import DiffusionClassifier

    folder = shutil.copytree(model_folder("sdxl"), tmp_path / "sdxl")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"][:] = torch.nan
    save_file(weights, path, {"format": "pt"})
    clf = DiffusionClassifier.from_pretrained(folder, device="cpu", dtype="float32", batch_size=4)
    result = clf.classify(torch.rand(3, 16, 16), ["a dog", "a cat"], strategy="fixed:2")[0]
    assert result.label is None
    assert "class a dog at t = 500 is not finite in float32" in result.failure
