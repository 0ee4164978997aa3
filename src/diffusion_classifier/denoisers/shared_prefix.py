"""The part of a network that does not see the class, run once for each noisy latent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .devices import to_device


class Prefix:
    """Modules of a network whose inputs depend on the noisy latent and its time alone.

    Each runs on one row of every noisy latent, and its output is repeated for the rows that share it: exact, but for
    the order in which float sums are taken in batches of another size. All tensors that the modules take and return
    have the rows first.

    Args:
        modules: such modules, in any order.
        at_once: rows that each is always given, filled up with one of them, so that not a bit depends on how many
            latents a batch has; as many as there are latents if None.

    Attributes:
        share: of a prediction's operations; None until it is counted.
    """

    def __init__(self, modules: Iterable[torch.nn.Module] = (), at_once: int | None = None) -> None:
        self._rows: tuple[Tensor, Tensor] | None = None  # first row (U,) of each latent, latent (B,) of each row
        self._modules: list[Any] = list(modules)
        self.at_once = at_once
        for module in self._modules:
            module.forward = partial(self._shared, module.forward)
        self.share: float | None = None if self._modules else 0.0

    def remove(self) -> None:
        """Every row is computed by itself from now on."""
        self.share = 0.0
        for module in self._modules:
            del module.forward  # what hides that of its class
        self._modules.clear()

    @contextmanager
    def shared(self, latent_index: Tensor, device: torch.device) -> Iterator[None]:
        """For a while, rows with the same index (B,), int64, on the CPU, share this part's work."""
        if self._modules:
            _, first, inverse = np.unique(latent_index.numpy(), return_index=True, return_inverse=True)
            if self.at_once is not None or len(first) < len(latent_index):
                self._rows = to_device(torch.from_numpy(first), device), to_device(torch.from_numpy(inverse), device)
        try:
            yield
        finally:
            self._rows = None

    def _shared(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._rows is None:
            return forward(*args, **kwargs)
        first, latent = self._rows
        size = self.at_once or len(first)
        filled = torch.cat([first, first[-1:].expand(-len(first) % size)])
        parts = [forward(*_select(args, rows), **_select(kwargs, rows)) for rows in torch.split(filled, size)]
        return _select(parts[0] if len(parts) == 1 else _joined(parts), latent)


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(_joined(list(values)) for values in zip(*parts, strict=True))


def _select(values: Any, rows: Tensor) -> Any:
    if isinstance(values, Tensor):
        return values[rows]
    if isinstance(values, tuple):
        return tuple(_select(value, rows) for value in values)
    if isinstance(values, dict):
        return {key: _select(value, rows) for key, value in values.items()}
    return values
