"""Random choice of images that are held out of training."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError


def held_out_rows(num_images: int, count: int, seed: int) -> Tensor:
    """Return random rows to hold out, (count,), int64, ascending. They depend on the arguments alone.

    Raises:
        InputError: No image would be left for training.
    """
    if not 0 <= count < num_images:
        raise InputError(f"{count} images cannot be held out of {num_images}: some must be left to train on")
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order[:count].sort().values
