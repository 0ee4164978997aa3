"""Images as a diffusion model of latents is trained on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from .loop import Progress

BATCH = 256
"""Images that are encoded at once."""


def pixels(images: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Images (N, 1 or 3, S, S), uint8, as (B, 3, S, S) in [-1, 1], on the device."""
    return (images[rows].to(device).float() / 127.5 - 1).expand(-1, 3, -1, -1)


def image_processor(edge: int, **options: Any) -> CLIPImageProcessorPil:
    """By which transformers makes of an image what `pixels` gives: a square of that edge, in [-1, 1]."""
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
    on_stage: Callable[[str, int, int], None],
    on_step: Callable[[Progress], None],
    batch_size: int = BATCH,
) -> Tensor:
    """Latents (N, *) of images as `pixels` takes them, float16, in the computer's memory."""
    parts = []
    batches = torch.split(torch.arange(len(images)), batch_size)
    on_stage("latents", len(batches), batch_size)
    for i, rows in enumerate(batches):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            parts.append(encode(pixels(images, rows, device)).half().cpu())
        on_step(Progress(i + 1, len(batches), math.nan, "latents"))
    return torch.cat(parts)
