"""The image autoencoder (VAE) of latent diffusion models; what all families that have one share."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..exceptions import InputError


def sizes(vae: AutoencoderKL, sample_size: object) -> tuple[tuple[int, int, int], int]:
    """Shape of one latent, (C, S, S), and edge in pixels of the images, for a network whose config has sample_size S.

    Raises:
        InputError: S is not one number.
    """
    if not isinstance(sample_size, int):
        raise InputError(f"the network's sample_size is {sample_size}; one number, the edge of a square, is needed")
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    return (vae.config.latent_channels, sample_size, sample_size), sample_size * scale


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to the scaled means of their latents, (B, C, S, S), float32."""
    mean: Tensor = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean.float()
    shift, scale = float(vae.config.shift_factor or 0), float(vae.config.scaling_factor)
    return (mean - shift) * scale
