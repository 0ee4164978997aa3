"""Trace the tensors of a weight file through another library's conversion, to find out which of them it used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class Trace(TorchFunctionMode):
    """Context in which the result of each operation inherits the names of the tensors that it was computed from.

    The names follow tensors through renaming, splitting, stacking, transposing and casting, so that nothing depends on
    the conversion's own reports.

    Args:
        tensors: name → tensor on the CPU. They must outlive the context, because tensors are recognised by address.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {tensor.data_ptr(): frozenset([name]) for name, tensor in tensors.items() if tensor.numel()}

    def __torch_function__(self, func: Any, types: Collection[type], args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and record the sources of its result."""
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        names = frozenset[str]().union(*map(self.names, inputs))
        result = func(*args, **(kwargs or {}))
        # An operation that returns nothing, such as an assignment, has changed its first argument.
        for tensor in [x for x in tree_leaves(result) if isinstance(x, Tensor)] or inputs[:1]:
            if address := _address(tensor):
                self._names[address] = names  # also if there are none, because addresses of freed tensors are reused
        return result

    def names(self, tensor: Tensor) -> frozenset[str]:
        """Return the names of the tensors in the file that a tensor was computed from."""
        return self._names.get(_address(tensor), frozenset())


def _address(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return 0
        return tensor.data_ptr()
