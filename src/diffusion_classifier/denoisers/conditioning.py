"""What a network is conditioned on.

Shape legend: K classes, P prompts of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..devices import to_device


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
        """K rows: the means of a class's prompts; of masks and lengths what covers all of them."""
        if self.num_prompts == 1:
            return self
        grouped = {name: t.reshape(len(self), self.num_prompts, *t.shape[1:]) for name, t in self.tensors.items()}
        return Conditioning({name: t.mean(1) if t.is_floating_point() else t.amax(1) for name, t in grouped.items()})

    def joined(self, other: Conditioning) -> Conditioning:
        """The classes of both, whose numbers of prompts must be the same."""
        return replace(self, tensors={name: torch.cat([t, other.tensors[name]]) for name, t in self.tensors.items()})
