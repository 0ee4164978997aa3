"""The part of a network that does not see the class, run once for each noisy latent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..devices import to_device


class Prefix:
    """Modules of a network whose inputs depend on the noisy latent and its time alone.

    Each runs on one row of every noisy latent, and its output is repeated for the rows that share it: exact, but for
    the order in which float sums are taken in batches of another size. All tensors that the modules take and return
    have the rows first.

    Args:
        modules: such modules, in any order.

    Attributes:
        share: of a prediction's operations; None until it is counted.
    """

    def __init__(self, modules: Iterable[torch.nn.Module] = ()) -> None:
        self._rows: tuple[Tensor, Tensor] | None = None  # first row (U,) of each latent, latent (B,) of each row
        self._hooks = [
            hook
            for module in modules
            for hook in (
                module.register_forward_pre_hook(self._distinct, with_kwargs=True),
                module.register_forward_hook(self._repeated),
            )
        ]
        self.share: float | None = None if self._hooks else 0.0

    def remove(self) -> None:
        """Every row is computed by itself from now on."""
        self.share = 0.0
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def shared(self, latent_index: Tensor, device: torch.device) -> Iterator[None]:
        """For a while, rows with the same index (B,), int64, on the CPU, share this part's work."""
        if self._hooks:
            _, first, inverse = np.unique(latent_index.numpy(), return_index=True, return_inverse=True)
            if len(first) < len(latent_index):
                self._rows = to_device(torch.from_numpy(first), device), to_device(torch.from_numpy(inverse), device)
        try:
            yield
        finally:
            self._rows = None

    def _distinct(self, _: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        if self._rows is not None:
            return _select(args, self._rows[0]), _select(kwargs, self._rows[0])
        return None

    def _repeated(self, _: torch.nn.Module, __: Any, output: Any) -> Any:
        return None if self._rows is None else _select(output, self._rows[1])


def _select(values: Any, rows: Tensor) -> Any:
    if isinstance(values, Tensor):
        return values[rows]
    if isinstance(values, tuple):
        return tuple(_select(value, rows) for value in values)
    if isinstance(values, dict):
        return {key: _select(value, rows) for key, value in values.items()}
    return values
