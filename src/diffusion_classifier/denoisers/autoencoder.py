"""The image autoencoder (VAE) of latent diffusion models; what all families that have one share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError


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
        InputError: S is not one number, a latent has other channels, or the autoencoder's config cannot be used.
    """
    if not isinstance(sample_size, int):
        raise InputError(f"the network's sample_size is {sample_size}; one number, the edge of a square, is needed")
    given = 3 if vae is None else _check_config(vae)
    if channels != given:
        raise InputError(
            f"the network reads {channels} channels where a latent has {given}: inpainting, depth and upscaling models "
            "need a second image and cannot classify"
        )
    return (channels, sample_size, sample_size), sample_size * scale(vae)


def _check_config(vae: Any) -> int:
    """Channels of a latent, where the config says how latents are scaled.

    Raises:
        InputError: it does not, or not in numbers that can be used.
    """
    config, where = vae.config, f"the config of the {type(vae).__name__}"
    channels = config.get("latent_channels")
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"{where} has latent_channels {channels!r}; a whole number from 1 is needed")
    factor, shift = config.get("scaling_factor"), config.get("shift_factor")
    if not _is_number(factor) or factor <= 0:
        raise InputError(
            f"{where} has scaling_factor {factor!r}; the positive number is needed by which latents were multiplied in "
            "training, such as 0.18215 for Stable Diffusion 1"
        )
    if shift is not None and not _is_number(shift):
        raise InputError(f"{where} has shift_factor {shift!r}; a finite number, or null for none, is needed")
    mean, std = (config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is None and std is None:
        return channels
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        numbers = isinstance(values, list | tuple) and all(map(_is_number, values)) and len(values) == channels
        if not numbers or (name == "latents_std" and min(values) <= 0):
            raise InputError(
                f"{where} has {name} {values!r}; latents_mean and latents_std are {channels} finite numbers each, one "
                "for each channel of a latent, those of latents_std positive, or both null"
            )
    return channels


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
