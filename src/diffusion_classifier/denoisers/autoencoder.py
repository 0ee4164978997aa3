"""The image autoencoder (VAE) of latent diffusion models; what all families that have one share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..exceptions import InputError


def scale(vae: Any) -> int:
    """Pixels of an image along an edge for each of a latent; 1 where vae is None, for a model of pixels."""
    if vae is None:
        return 1
    for name in ("block_out_channels", "encoder_block_out_channels", "down_block_out_channels"):
        if widths := vae.config.get(name):
            return 1 << (len(widths) - 1)
    raise InputError(f"an autoencoder of the kind {type(vae).__name__} is not known")


def sizes(vae: Any, sample_size: object, channels: int) -> tuple[tuple[int, int, int], int]:
    """Shape of one latent, (C, S, S), and edge in pixels of the images.

    Args:
        vae: the autoencoder; None for a model of pixels.
        sample_size: S, of the network.
        channels: C, that the network reads.

    Raises:
        InputError: S is not one number, or a latent has other channels.
    """
    if not isinstance(sample_size, int):
        raise InputError(f"the network's sample_size is {sample_size}; one number, the edge of a square, is needed")
    given = 3 if vae is None else int(vae.config.latent_channels)
    if channels != given:
        raise InputError(
            f"the network reads {channels} channels where a latent has {given}: inpainting, depth and upscaling models "
            "need a second image and cannot classify"
        )
    return (channels, sample_size, sample_size), sample_size * scale(vae)


@torch.no_grad()
def encode(vae: Any, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to the scaled means of their latents, (B, C, S, S), float32."""
    if vae is None:
        return images.float()
    encoded = vae.encode(images.to(vae.device, vae.dtype))
    if hasattr(encoded, "latent_dist"):
        found = encoded.latent_dist.mean
    else:  # of AutoencoderDC, of AutoencoderTiny
        found = encoded.latent if hasattr(encoded, "latent") else encoded.latents
    latent: Tensor = found.float()
    shift, factor = _scaling(vae, latent)
    scaled: Tensor = (latent - shift) * factor
    return scaled


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W), float32, of scaled latents (B, C, S, S), in about [-1, 1]: what `encode` undoes."""
    if vae is None:
        return latents
    shift, factor = _scaling(vae, latents)
    images: Tensor = vae.decode((latents / factor + shift).to(vae.device, vae.dtype), return_dict=False)[0]
    return images.float()


def _scaling(vae: Any, latents: Tensor) -> tuple[Any, Any]:
    """What is taken off latents, and by what they are then multiplied."""
    config = vae.config
    factor = float(config.scaling_factor)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:  # Playground 2.5
        mean, std = (latents.new_tensor(config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
        return mean, factor / std
    return float(config.get("shift_factor") or 0), factor
