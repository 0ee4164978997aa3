"""Shared prefix: the part of a network that does not depend on the class, run once for each noisy latent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .devices import to_device


class Prefix:
    """Modules of a network whose inputs depend only on the noisy latent and its time.

    Within `shared`, each module runs on one row per noisy latent, and its output is repeated for the other rows. The
    result is exact, except for the order in which float sums are taken in batches of another size. All tensors that the
    modules take and return have the rows in their first dimension. Outside `shared`, the modules are unchanged.

    Args:
        modules: such modules, in any order.
        fixed: those of them whose work is shared while rows are fixed, too; see `fixed_rows`.
        num_fixed_rows: number of rows of each of their calls then. Calls are filled up with copies of one row, so that
            no bit depends on the number of latents in a batch.
    """

    def __init__(
        self, modules: Iterable[torch.nn.Module] = (), fixed: Iterable[torch.nn.Module] = (), num_fixed_rows: int = 1
    ) -> None:
        self._modules: list[torch.nn.Module] = list(modules)
        self._fixed: list[torch.nn.Module] = list(fixed)
        self._num_fixed_rows = num_fixed_rows
        self._rows_are_fixed = False
        self._shares: dict[bool, float] = {}

    @property
    def _sharing(self) -> list[torch.nn.Module]:
        return self._fixed if self._rows_are_fixed else self._modules

    @property
    def share(self) -> float | None:
        """Share of a prediction's operations; None until it is counted."""
        return self._shares.get(self._rows_are_fixed) if self._sharing else 0.0

    @share.setter
    def share(self, share: float) -> None:
        self._shares[self._rows_are_fixed] = share

    def remove(self, but: Iterable[torch.nn.Module] = ()) -> None:
        """Stop sharing, except in the modules `but`: every row is computed by itself from now on."""
        kept = list(but)
        self._modules, self._fixed = ([m for m in own if m in kept] for own in (self._modules, self._fixed))
        self._shares.clear()

    @contextmanager
    def fixed_rows(self, fixed: bool = True) -> Iterator[None]:
        """Let no bit of a row depend on the other rows of its batch within the context, if `fixed`."""
        before, self._rows_are_fixed = self._rows_are_fixed, fixed
        try:
            yield
        finally:
            self._rows_are_fixed = before

    @contextmanager
    def shared(self, latent_index: Tensor, device: torch.device, *, fill: bool = True) -> Iterator[None]:
        """Let rows with the same index share the work of the modules within the context.

        Args:
            latent_index: (B,), int64, on the CPU: index of the noisy latent of each row.
            device: device of the network.
            fill: whether to fill up the calls while rows are fixed.
        """
        with ExitStack() as stack:
            if self._sharing:
                _, first, inverse = np.unique(latent_index.numpy(), return_index=True, return_inverse=True)
                filled = self._rows_are_fixed and fill
                if filled or len(first) < len(latent_index):
                    # First row (U,) of each latent, and latent (B,) of each row.
                    row, latent = (to_device(torch.from_numpy(index), device) for index in (first, inverse))
                    size = self._num_fixed_rows if filled else len(first)
                    for module in self._sharing:
                        run = partial(_run_shared, module.forward, row, latent, size)
                        stack.enter_context(replaced(module, "forward", run))
            yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of an object within the context, and restore the object afterwards."""
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _run_shared(
    forward: Callable[..., Any], first: Tensor, latent: Tensor, size: int, *args: Any, **kwargs: Any
) -> Any:
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
