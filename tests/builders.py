"""Tiny pipelines of every family, with random weights, saved with `save_pretrained`."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffusion_classifier.denoisers.families.late import LateConditionedPipeline

MAX_TOKENS = 24
ID2LABEL = dict(
    zip(
        map(str, range(11)),
        ["tench, Tinca tinca", "crane", "crane", "missile", "projectile, missile", *"abcde", "zebra"],
        strict=True,
    )
)


def tokenizer(words=()):
    """Build a tokenizer in which every byte and each of the words is a token: n letters are n + 2 tokens."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokens = CLIPTokenizer(vocab={w: i for i, w in enumerate(vocabulary)}, merges=[], model_max_length=MAX_TOKENS)
    tokens.add_tokens(list(words))
    return tokens


def text_encoder(tokens, **config):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            **config,
        )
    )


def vae(**config):
    """Build an autoencoder from images of 16 × 16 to latents of 4 × 8 × 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **config,
    )


def text_unet(**config):
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            **config,
        }
    )


def stable_diffusion(folder, unet=None, encoder=None, vae_config=None, words=(), **scheduler):
    torch.manual_seed(0)
    tokens = tokenizer(words)
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **scheduler}
    StableDiffusionPipeline(
        vae=vae(**vae_config or {}),
        text_encoder=text_encoder(tokens, **encoder or {}),
        tokenizer=tokens,
        unet=text_unet(**unet or {}),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def stable_diffusion_v(folder):
    """Save a model with velocity prediction, zero terminal SNR, and shifted latents."""
    stable_diffusion(
        folder,
        vae_config={"shift_factor": 0.1, "scaling_factor": 0.7},
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )


def dit(folder, id2label=ID2LABEL):
    """Save a DiT with learned variance, and id2label in its index as on the hub, where save_pretrained omits it."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=len(ID2LABEL),
    )
    DiTPipeline(transformer, vae(), DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    if id2label:
        edit_json(folder / "model_index.json", id2label=id2label)


def class_unet(folder, settings=None, scheduler=None, **config):
    """Save a U-Net for greyscale images of 16 × 16, as 4 channels of 8 × 8, with three classes and a null class."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "num_class_embeds": 4,
            **config,
        }
    )
    DDPMPipeline(unet, scheduler or DDPMScheduler(prediction_type="sample")).save_pretrained(folder)
    settings = {"class_names": ["cat", "dog", "door"], "patch_size": 2} if settings is None else settings
    (folder / "diffusion_classifier.json").write_text(json.dumps(settings))


def late_unet(folder, transformer=False):
    """Save a model with late conditioning: a backbone of two output channels and a one-level class-conditional head."""
    torch.manual_seed(0)
    shared = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
    if transformer:
        trunk = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=2,
            num_layers=2,
            sample_size=8,
            patch_size=1,
            num_embeds_ada_norm=1,
        )
    else:
        trunk = UNet2DModel(
            in_channels=4,
            out_channels=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            **shared,
        )
    head = UNet2DModel(
        in_channels=6,
        out_channels=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        block_out_channels=(8,),
        num_class_embeds=4,
        **shared,
    )
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    LateConditionedPipeline(trunk, head, scheduler).save_pretrained(folder)
    settings = {"class_names": ["cat", "dog", "door"], "patch_size": 2}
    (folder / "diffusion_classifier.json").write_text(json.dumps(settings))


def edit_json(path, **values):
    """Change values in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BUILDERS = {
    "sd-epsilon": stable_diffusion,
    "sd-v": stable_diffusion_v,
    "dit": dit,
    "class-unet": class_unet,
    "late-unet": late_unet,
    "late-dit": lambda folder: late_unet(folder, transformer=True),
    "edm-unet": lambda folder: class_unet(folder, scheduler=EDMEulerScheduler(sigma_max=50.0)),
}


def record_rows(module, rows, name):
    """Record in `rows[name]` the number of rows of a module's last call."""
    forward = module.forward

    def recorded(*args, **kwargs):
        given = (*args, *kwargs.values())
        rows[name] = next(len(v) for v in given if isinstance(v, torch.Tensor) and v.ndim)
        return forward(*args, **kwargs)

    module.forward = recorded
