"""Denoisers of real size with random weights, to measure time. Their predictions are meaningless."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel, StableDiffusionPipeline, UNet2DConditionModel

from diffusion_classifier.denoisers import Conditioning, Denoiser
from diffusion_classifier.denoisers.families import DiT, StableDiffusion

SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TOKENS = 77


def vae(widths: tuple[int, ...]) -> AutoencoderKL:
    """Build Stable Diffusion's autoencoder for images of 256 pixels."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )


def text_to_image(num_classes: int, vae_widths: tuple[int, ...], **unet: object) -> tuple[Denoiser, Conditioning]:
    """Build a Stable Diffusion model without a text encoder. The prompt embeddings are random, too."""
    torch.manual_seed(0)
    network = UNet2DConditionModel(sample_size=32, use_linear_projection=True, **unet)
    pipeline = StableDiffusionPipeline(
        vae=vae(vae_widths),
        text_encoder=None,
        tokenizer=None,
        unet=network,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, **SD_BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    denoiser = StableDiffusion(pipeline)
    width = network.config.cross_attention_dim
    return denoiser, Conditioning({"prompt_embeds": torch.randn(num_classes, TOKENS, width)})


def stable_diffusion_2(num_classes: int) -> tuple[Denoiser, Conditioning]:
    """Build Stable Diffusion 2, with a U-Net of 866 M parameters."""
    return text_to_image(
        num_classes, (128, 256, 512, 512), cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20)
    )


def small_stable_diffusion(num_classes: int) -> tuple[Denoiser, Conditioning]:
    """Build Stable Diffusion 2 at a fifth of its width."""
    return text_to_image(
        num_classes,
        (32, 32, 32, 32),
        block_out_channels=(64, 128, 256, 256),
        cross_attention_dim=256,
        attention_head_dim=(1, 2, 4, 4),
    )


def transformer(num_classes: int, vae_widths: tuple[int, ...], **network: int) -> tuple[Denoiser, Conditioning]:
    """Build a DiT."""
    torch.manual_seed(0)
    net = DiTTransformer2DModel(in_channels=4, out_channels=8, sample_size=32, num_embeds_ada_norm=1000, **network)
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "linear"}
    denoiser = DiT(net, vae(vae_widths), scheduler)
    return denoiser, denoiser.condition(range(num_classes))


def dit(num_classes: int) -> tuple[Denoiser, Conditioning]:
    """Build DiT-XL/2, with 675 M parameters."""
    return transformer(num_classes, (128, 256, 512, 512), num_attention_heads=16, attention_head_dim=72, num_layers=28)


def small_dit(num_classes: int) -> tuple[Denoiser, Conditioning]:
    """Build DiT-S/2 at half its depth."""
    return transformer(num_classes, (32, 32, 32, 32), num_attention_heads=6, attention_head_dim=64, num_layers=6)
