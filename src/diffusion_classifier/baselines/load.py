"""Find out which baseline a folder or hub id holds, and load it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

import torch

from ..errors import InputError
from .base import Baseline
from .pretrained import ModelFiles

BASELINES = (
    "features:Features",
    "supervised:Supervised",
    "contrastive:Contrastive",
    "open_clip:OpenClip",
)
"""Module and class of every baseline. The first class that recognizes a model's files loads it."""


def find_baseline(source: str | Path, kind: str | None = None) -> type[Baseline] | None:
    """Return the class that loads a model.

    Args:
        source: folder or hub id.
        kind: consider only classes of this kind (`Baseline.model_kind`); all if None.

    Returns:
        None for a diffusion model, and for anything else that no baseline recognizes.
    """
    files = ModelFiles(source)
    if files.is_pipeline:
        return None
    for place in BASELINES:
        module, name = place.split(":")
        found = cast("type[Baseline]", getattr(import_module(f".{module}", __package__), name))
        if kind in (None, found.model_kind) and found.recognizes(files):
            return found
    return None


def kind_of(source: str | Path) -> str | None:
    """Return the kind of baseline (`Baseline.model_kind`) that a folder or hub id holds; None if it holds none."""
    found = find_baseline(source)
    return None if found is None else found.model_kind


def load_baseline(
    source: str | Path,
    kind: str | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> Baseline:
    """Load a model that classifies an image in one forward pass.

    Args:
        source: folder or hub id; or, for a bundled model, "scenes/contrastive".
        kind: accept only this kind of model, such as "contrastive"; any if None.
        device: as in `load_denoiser`.
        dtype: dtype of the networks; float32 if "auto", or the dtype that a head on features was trained with.

    Raises:
        InputError: no baseline of this kind recognizes the model, or it cannot be loaded.
    """
    found = find_baseline(source, kind)
    if found is None:
        wanted = "" if kind is None else f"{kind} "
        raise InputError(f"{source} is not a {wanted}model that classifies in one pass: give its folder or hub id")
    return found.from_pretrained(source, device=device, dtype=dtype)
