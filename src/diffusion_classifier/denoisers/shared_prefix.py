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
        fixed: those of them whose work is shared while rows are fixed, too; see `fixed_rows`.
        num_fixed_rows: rows of each of their calls then. Calls are filled up, so that not a bit of a row depends on the
            number of latents in its batch.
    """

    def __init__(
        self, modules: Iterable[torch.nn.Module] = (), fixed: Iterable[torch.nn.Module] = (), num_fixed_rows: int = 1
    ) -> None:
        # First row (U,) of each latent, latent (B,) of each row, and rows of one call.
        self._rows: tuple[Tensor, Tensor, int] | None = None
        self._modules: list[Any] = list(modules)
        self._fixed: list[Any] = list(fixed)
        self._num_fixed_rows = num_fixed_rows
        self._rows_are_fixed = False
        self._shares: dict[bool, float] = {}
        for module in self._modules:
            shared = self._shared if module in self._fixed else self._shared_unless_fixed
            module.forward = partial(shared, module.forward)

    @property
    def _sharing(self) -> list[Any]:
        return self._fixed if self._rows_are_fixed else self._modules

    @property
    def share(self) -> float | None:
        """The modules' part of a prediction's operations; None until it is counted."""
        return self._shares.get(self._rows_are_fixed) if self._sharing else 0.0

    @share.setter
    def share(self, share: float) -> None:
        self._shares[self._rows_are_fixed] = share

    def remove(self, but: Iterable[torch.nn.Module] = ()) -> None:
        """Compute every row by itself from now on, in all modules but some."""
        kept = list(but)
        for module in self._modules:
            if module not in kept:
                del module.forward  # what hides that of its class
        self._modules, self._fixed = ([m for m in own if m in kept] for own in (self._modules, self._fixed))
        self._shares.clear()

    @contextmanager
    def fixed_rows(self, fixed: bool = True) -> Iterator[None]:
        """Within the context, no bit of a row depends on the other rows of its batch, if `fixed`."""
        before, self._rows_are_fixed = self._rows_are_fixed, fixed
        try:
            yield
        finally:
            self._rows_are_fixed = before

    @contextmanager
    def shared(self, latent_index: Tensor, device: torch.device, *, fill: bool = True) -> Iterator[None]:
        """Within the context, rows with the same index (B,), int64, on the CPU, share the modules' work.

        Args:
            latent_index: the noisy latent of each row.
            device: where the network is.
            fill: whether to fill up the calls while rows are fixed.
        """
        if self._sharing:
            _, first, inverse = np.unique(latent_index.numpy(), return_index=True, return_inverse=True)
            filled = self._rows_are_fixed and fill
            if filled or len(first) < len(latent_index):
                rows, latents = (to_device(torch.from_numpy(index), device) for index in (first, inverse))
                self._rows = rows, latents, self._num_fixed_rows if filled else len(first)
        try:
            yield
        finally:
            self._rows = None

    def _shared_unless_fixed(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return (forward if self._rows_are_fixed else partial(self._shared, forward))(*args, **kwargs)

    def _shared(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._rows is None:
            return forward(*args, **kwargs)
        first, latent, size = self._rows
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
