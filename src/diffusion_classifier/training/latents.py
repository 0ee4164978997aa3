"""Encode images for the training of latent diffusion models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .loop import Callbacks, Progress

BATCH = 256
"""Number of images per batch of the encoder."""


def pixels(images: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Return the given rows of images (N, 1 or 3, S, S), uint8, as (B, 3, S, S) in [-1, 1], on the device."""
    return (images[rows].to(device).float() / 127.5 - 1).expand(-1, 3, -1, -1)


def image_processor(edge: int, **options: Any) -> CLIPImageProcessorPil:
    """Return the image processor that turns an image into the same values as `pixels`: a square in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3, **options,
    )  # fmt: skip


@torch.no_grad()
def encode_all(
    images: Tensor,
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
    autocast: bool,
    callbacks: Callbacks,
    batch_size: int = BATCH,
) -> Tensor:
    """Encode images, as `pixels` takes them, to latents (N, *), float16, on the CPU."""
    parts = []
    batches = torch.split(torch.arange(len(images)), batch_size)
    callbacks.on_stage("latents", len(batches), batch_size)
    for i, rows in enumerate(batches):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            parts.append(encode(pixels(images, rows, device)).half().cpu())
        callbacks.on_step(Progress(i + 1, len(batches), math.nan, "latents"))
    return torch.cat(parts)
