"""What a network is conditioned on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..devices import to_device


@dataclass(frozen=True)
class Conditioning:
    """What the network is conditioned on, one row a class: named tensors (K, *)."""

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Tensor) -> Conditioning:
        """The rows (B,) → B rows."""
        return Conditioning({name: tensor[to_device(rows, tensor.device)] for name, tensor in self.tensors.items()})
