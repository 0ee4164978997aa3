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
        at_once: fixed number of rows per call of a module, filled up with copies of one row, so that no bit depends on
            the number of latents in a batch. None stands for one call with all latents.

    Attributes:
        share: share of a prediction's operations. None until it is counted.
    """

    def __init__(self, modules: Iterable[torch.nn.Module] = (), at_once: int | None = None) -> None:
        self._modules: list[torch.nn.Module] = list(modules)
        self.at_once = at_once
        self.share: float | None = None if self._modules else 0.0

    def remove(self) -> None:
        """Stop sharing: every row is computed by itself from now on."""
        self.share = 0.0
        self._modules.clear()

    @contextmanager
    def shared(self, latent_index: Tensor, device: torch.device) -> Iterator[None]:
        """Let rows with the same index (B,), int64, on the CPU, share the work of these modules within the context."""
        with ExitStack() as stack:
            if self._modules:
                _, first, inverse = np.unique(latent_index.numpy(), return_index=True, return_inverse=True)
                if self.at_once is not None or len(first) < len(latent_index):
                    # First row (U,) of each latent, and latent (B,) of each row.
                    row, latent = (to_device(torch.from_numpy(index), device) for index in (first, inverse))
                    for module in self._modules:
                        run = partial(_run_shared, module.forward, row, latent, self.at_once)
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
    forward: Callable[..., Any], first: Tensor, latent: Tensor, at_once: int | None, *args: Any, **kwargs: Any
) -> Any:
    size = at_once or len(first)
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
