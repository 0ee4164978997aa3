"""Image autoencoder (VAE) of latent diffusion models, for all families that have one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

WIDTHS = "block_out_channels"
"""Name under which the config of most autoencoders lists the widths of the resolution levels."""


def scale(vae: Any, widths: str = WIDTHS) -> int:
    """Return the number of pixels along an edge per latent pixel: 1 if vae is None, for a model in pixel space.

    Args:
        vae: autoencoder, or None.
        widths: name of the config entry that lists the widths of the encoder's levels, each half as large as the last.

    Raises:
        InputError: the config has no such entry.
    """
    if vae is None:
        return 1
    if levels := vae.config.get(widths):
        return 1 << (len(levels) - 1)
    raise InputError(f"an autoencoder of the kind {type(vae).__name__} is not known")


def sizes(vae: Any, sample_size: object, channels: int, widths: str = WIDTHS) -> tuple[tuple[int, int, int], int]:
    """Return the shape of one latent, (C, S, S), and the edge in pixels of the images.

    Args:
        vae: autoencoder, or None for a model in pixel space.
        sample_size: S, as the network's config states it.
        channels: C, number of channels that the network takes.
        widths: see `scale`.

    Raises:
        InputError: S is not one number, a latent has another number of channels, or the autoencoder's config cannot be
            used.
    """
    if not isinstance(sample_size, int):
        raise InputError(f"the network's sample_size is {sample_size}; one number, the edge of a square, is needed")
    given = 3 if vae is None else _check_config(vae)
    if channels != given:
        raise InputError(
            f"the network reads {channels} channels where a latent has {given}: inpainting, depth and upscaling models "
            "need a second image and cannot classify"
        )
    return (channels, sample_size, sample_size), sample_size * scale(vae, widths)


def _check_config(vae: Any) -> int:
    """Return the number of channels of a latent, after checking how the config says that latents are scaled.

    Raises:
        InputError: a value is missing or out of range.
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
    """Encode images (B, 3, H, W) in [-1, 1] as the scaled means of their latents, (B, C, S, S), float32."""
    if vae is None:
        return images.float()
    encoded = vae.encode(images.to(vae.device, vae.dtype))
    if hasattr(encoded, "latent_dist"):
        found = encoded.latent_dist.mean
    else:  # AutoencoderDC returns `latent`, AutoencoderTiny `latents`
        found = encoded.latent if hasattr(encoded, "latent") else encoded.latents
    latent: Tensor = found.float()
    shift, factor = _scaling(vae, latent)
    scaled: Tensor = (latent - shift) * factor
    return scaled


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents (B, C, S, S) to images (B, 3, H, W), float32, in about [-1, 1]: inverse of `encode`."""
    if vae is None:
        return latents
    shift, factor = _scaling(vae, latents)
    images: Tensor = vae.decode((latents / factor + shift).to(vae.device, vae.dtype), return_dict=False)[0]
    return images.float()


def _scaling(vae: Any, latents: Tensor) -> tuple[Any, Any]:
    """Return the shift that is subtracted from latents, and the factor by which they are then multiplied."""
    config = vae.config
    factor = float(config.scaling_factor)
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:  # Playground 2.5
        mean, std = (latents.new_tensor(config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
        return mean, factor / std
    return float(config.get("shift_factor") or 0), factor
