"""What a network is conditioned on.

Shape legend: K classes, P prompts of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .devices import to_device


@dataclass(frozen=True)
class Conditioning:
    """What the network is conditioned on: named tensors (K·P, *), the rows of one class side by side.

    Args:
        tensors: see above.
        num_prompts: P. A class with several prompts has the mean of their errors.
    """

    tensors: Mapping[str, Tensor]
    num_prompts: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values()))) // self.num_prompts

    def __getitem__(self, rows: Tensor) -> Conditioning:
        """The rows (B,), each as a class of one prompt."""
        return Conditioning({name: tensor[to_device(rows, tensor.device)] for name, tensor in self.tensors.items()})

    def rows(self, classes: Tensor) -> Tensor:
        """Those of the classes (B,): (B·P,)."""
        if self.num_prompts == 1:
            return classes
        return (classes[:, None] * self.num_prompts + torch.arange(self.num_prompts)).flatten()

    def first_prompts(self) -> Conditioning:
        """K rows: the first prompt of each class."""
        return Conditioning({name: tensor[:: self.num_prompts] for name, tensor in self.tensors.items()})

    def averaged(self) -> Conditioning:
        """K rows: the means of a class's prompts, of each token over those that have it by their mask."""
        if self.num_prompts == 1:
            return self
        grouped = {name: t.reshape(len(self), self.num_prompts, *t.shape[1:]) for name, t in self.tensors.items()}
        mask = grouped.get("mask")

        def mean(values: Tensor) -> Tensor:
            if not values.is_floating_point():
                return values.amax(1)
            if mask is None or mask.shape != values.shape[: mask.ndim]:
                return values.mean(1)
            share = mask[..., None].to(values.dtype)
            return (values * share).sum(1) / share.sum(1).clamp(min=1)

        return Conditioning({name: mean(values) for name, values in grouped.items()})

    def to(self, device: torch.device) -> Conditioning:
        """The same on a device."""
        return replace(self, tensors={name: to_device(tensor, device) for name, tensor in self.tensors.items()})

    def joined(self, other: Conditioning) -> Conditioning:
        """The classes of both, whose numbers of prompts must be the same."""
        tensors = {name: torch.cat([t, other.tensors[name].to(t.device)]) for name, t in self.tensors.items()}
        return replace(self, tensors=tensors)
