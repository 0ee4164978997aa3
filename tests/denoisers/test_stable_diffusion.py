import logging
import shutil

import pytest
import torch
from builders import MAX_TOKENS, stable_diffusion
from diffusers import AutoencoderTiny, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.denoisers import text_conditional as text
from diffusion_classifier.denoisers.families.stable_diffusion import StableDiffusion
from diffusion_classifier.denoisers.model_settings import ModelDefaults, ModelSettings
from diffusion_classifier.errors import InputError

LONGEST = "x" * (MAX_TOKENS - 2)
PROMPTS = ["", "a photo of a cat", "Ångström  CAFÉ", LONGEST, "one <toy> two"]


@pytest.fixture
def denoiser(model_folder):
    return load_denoiser(model_folder("sd-epsilon"), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"encoder": {"use_attention_mask": True}},
        {"words": ["<toy>", "<toy>_1"]},  # a word of two vectors, as textual inversion learns and saves it
    ],
)
@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_does(tmp_path, variant):
    stable_diffusion(tmp_path, **variant)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    denoiser = load_denoiser(tmp_path, device="cpu", dtype="float32")
    torch.testing.assert_close(denoiser.condition(PROMPTS).tensors["prompt_embeds"], expected)


@torch.no_grad()
def test_a_tiny_autoencoder_is_one(model_folder, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"))
    stages = len(pipeline.vae.config.block_out_channels)
    torch.manual_seed(0)
    widths, blocks = (8,) * stages, (1,) * stages
    pipeline.vae = AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=blocks,
        num_decoder_blocks=blocks, latent_channels=pipeline.vae.config.latent_channels,
    ).eval()  # fmt: skip
    pipeline.save_pretrained(tmp_path / "m")
    denoiser = load_denoiser(tmp_path / "m", device="cpu", dtype="float32")
    images = torch.rand(2, 3, denoiser.image_size, denoiser.image_size) * 2 - 1
    torch.testing.assert_close(denoiser.encode(images), pipeline.vae.encode(images).latents)


def test_many_prompts_are_encoded_in_batches(denoiser, monkeypatch):
    whole = denoiser.condition(PROMPTS).tensors["prompt_embeds"]
    (encoder,) = denoiser._encoders
    sizes = []
    encoder.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
    monkeypatch.setattr(text, "_PROMPT_BATCH", 2)
    torch.testing.assert_close(denoiser.condition(PROMPTS).tensors["prompt_embeds"], whole)
    assert sizes == [2, 2, 1]


def test_a_prompt_is_never_cut_short(denoiser, caplog):
    logging.getLogger("transformers").addHandler(caplog.handler)  # it does not propagate
    denoiser.condition([LONGEST])
    with pytest.raises(InputError, match=rf"'{LONGEST}yz' is 2 tokens too long: it has {MAX_TOKENS + 2}"):
        denoiser.condition(["a cat", LONGEST + "yz"])
    with pytest.raises(InputError, match="tokens too long"):
        denoiser.condition([2 * LONGEST])
    assert caplog.records == []  # the error says it all


def test_indices_are_no_prompts(denoiser):
    with pytest.raises(InputError, match="reads text"):
        denoiser.condition([0, 1])


def test_conditioning_stays_exact_beside_a_16_bit_network(model_folder, denoiser):
    half = load_denoiser(model_folder("sd-epsilon"), device="cpu", dtype="bfloat16")
    prompts = ["a cat", "a dog"]
    embeds = half.condition(prompts).tensors["prompt_embeds"]
    assert torch.equal(embeds, denoiser.condition(prompts).tensors["prompt_embeds"])


def test_a_scheduler_that_was_put_in_by_hand_is_read(model_folder):
    pipeline = DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"))
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    assert StableDiffusion.from_pipeline(pipeline, ModelSettings()).prediction_type == "flow"


def test_settings_of_the_folder_are_those_of_the_denoiser(model_folder):
    """The constructor returns a finished denoiser."""
    defaults = ModelDefaults("fixed:8", "l1")
    settings = ModelSettings(image_size=24, defaults=defaults, licence="MIT", times="logit-normal", words=["a", "dog"])
    pipeline = DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"))
    denoiser = StableDiffusion.from_pipeline(pipeline, settings)
    found = denoiser.image_size, denoiser.defaults, denoiser.licence, denoiser.times, denoiser.words
    assert found == (24, defaults, "MIT", "logit-normal", ["a", "dog"])
    assert StableDiffusion.from_pipeline(pipeline, ModelSettings()).times == "even"


def test_the_older_names_of_weights_in_published_models_are_known(model_folder, denoiser, tmp_path):
    folder = shutil.copytree(model_folder("sd-epsilon"), tmp_path / "sd")
    path = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{key}": value for key, value in load_file(path).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(MAX_TOKENS)[None]
    save_file(weights, path, {"format": "pt"})
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        weights = {key.replace(new, old): value for key, value in weights.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in weights
    save_file(weights, path, {"format": "pt"})

    old = load_denoiser(folder, device="cpu", dtype="float32")
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(old.encode(image), denoiser.encode(image))
    found, expected = (d.condition(PROMPTS).tensors["prompt_embeds"] for d in (old, denoiser))
    assert torch.equal(found, expected)
