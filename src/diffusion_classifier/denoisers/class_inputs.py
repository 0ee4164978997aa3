"""Inputs of a network for the classes, as tensors with respect to which errors can be differentiated.

Shape legend: K classes, B rows of one network batch, T distinct times in it, * dimensions of a class's input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .conditioning import Conditioning


@dataclass(frozen=True)
class ClassInputs:
    """Mean of all classes' inputs, which replaces the input of a class.

    Args:
        mean: B rows, for `Denoiser.forward`.
        leaves: tensors (B, *) that hold this mean, with respect to which errors are differentiated.
        project: function from the gradients (B, *) at the leaves to ⟨gradient, input of a class - mean⟩, (B, K),
            float32.
    """

    mean: Conditioning
    leaves: Sequence[Tensor]
    project: Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Entry:
    """One place where classes enter a network.

    Args:
        modules: linear maps that all take the same input.
        inputs: function from times (T,) and class indices (K,) to this input, (T, K, d).
    """

    modules: Sequence[torch.nn.Module]
    inputs: Callable[[Tensor, Tensor], Tensor]


def of_tensors(num_rows: int, conditioning: Conditioning, device: torch.device) -> ClassInputs:
    """Return the class inputs of a conditioning whose rows are floating-point tensors, such as encoded prompts."""
    conditioning = conditioning.averaged()
    numbers = {name: tensor.float() for name, tensor in conditioning.tensors.items() if tensor.is_floating_point()}
    means = {name: tensor.mean(0) for name, tensor in numbers.items()}
    leaves = {
        name: mean.to(device).expand(num_rows, *mean.shape).clone().requires_grad_() for name, mean in means.items()
    }
    # Masks and lengths: the largest of all classes.
    others = {name: t.amax(0).to(device) for name, t in conditioning.tensors.items() if name not in means}
    fixed = {name: t.expand(num_rows, *t.shape) for name, t in others.items()}

    def project(gradients: Sequence[Tensor]) -> Tensor:
        products = [
            gradient.to(means[name]).flatten(1) @ (numbers[name] - means[name]).flatten(1).T
            for (name, gradient) in zip(leaves, gradients, strict=True)
        ]
        return torch.stack(products).sum(0)

    return ClassInputs(Conditioning(leaves | fixed), list(leaves.values()), project)


@contextmanager
def of_entries(entries: Iterable[Entry], t: Tensor, labels: Tensor) -> Iterator[ClassInputs]:
    """Yield the class inputs of a network that takes class indices: the inputs of its first linear maps, with time.

    Args:
        entries: all places where the classes enter.
        t: (B,), on the network's device.
        labels: (K,), class indices.
    """
    times, time_of_row = torch.unique(t, return_inverse=True)
    entries = list(entries)

    def at(entry: Entry, i: int) -> Tensor:
        return entry.inputs(times[i : i + 1], labels)[0]  # one time at a time, to save memory

    with torch.no_grad():
        means = [torch.stack([at(entry, i).mean(0) for i in range(len(times))]) for entry in entries]
    leaves = [mean[time_of_row].requires_grad_() for mean in means]

    def project(gradients: Sequence[Tensor]) -> Tensor:
        result = torch.zeros(len(t), len(labels), device=t.device)
        for entry, gradient in zip(entries, gradients, strict=True):
            for i in range(len(times)):
                inputs, rows = at(entry, i).float(), time_of_row == i
                result[rows] += gradient[rows].float() @ (inputs - inputs.mean(0)).T
        return result

    def replaced_by(leaf: Tensor) -> Callable[..., Any]:
        return lambda module, args: (leaf,)  # noqa: ARG005

    hooks = [
        module.register_forward_pre_hook(replaced_by(leaf))
        for entry, leaf in zip(entries, leaves, strict=True)
        for module in entry.modules
    ]
    try:
        yield ClassInputs(Conditioning({"class_labels": labels[:1].expand(len(t))}), leaves, project)
    finally:
        for hook in hooks:
            hook.remove()
