"""Conditioning of a network: the encoded classes or prompts.

Shape legend: K classes, P prompts per class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .devices import to_device


@dataclass(frozen=True)
class Conditioning:
    """Named tensors (K·P, *) on which a network is conditioned, with the rows of one class next to each other.

    Args:
        tensors: name → tensor.
        num_prompts: P. The error of a class with several prompts is the mean over its prompts.
    """

    tensors: Mapping[str, Tensor]
    num_prompts: int = 1

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values()))) // self.num_prompts

    def __getitem__(self, rows: Tensor) -> Conditioning:
        """Return the rows (B,), each as a class with one prompt."""
        return Conditioning({name: tensor[to_device(rows, tensor.device)] for name, tensor in self.tensors.items()})

    def rows(self, classes: Tensor) -> Tensor:
        """Return the row indices of the classes (B,): (B·P,)."""
        if self.num_prompts == 1:
            return classes
        return (classes[:, None] * self.num_prompts + torch.arange(self.num_prompts)).flatten()

    def first_prompts(self) -> Conditioning:
        """Return K rows: the first prompt of each class."""
        return Conditioning({name: tensor[:: self.num_prompts] for name, tensor in self.tensors.items()})

    def averaged(self) -> Conditioning:
        """Return K rows, the means over the prompts of each class; masked tokens do not count."""
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
        """Move the tensors to a device."""
        return replace(self, tensors={name: to_device(tensor, device) for name, tensor in self.tensors.items()})

    def joined(self, other: Conditioning) -> Conditioning:
        """Concatenate the classes of two conditionings, which must have the same number of prompts."""
        tensors = {name: torch.cat([t, other.tensors[name].to(t.device)]) for name, t in self.tensors.items()}
        return replace(self, tensors=tensors)
