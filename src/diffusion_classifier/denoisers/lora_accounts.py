"""Check that every tensor of a LoRA file reached a network, with the scale that the file states.

The loaders of diffusers and peft skip names that fit no layer, and leave matrices that a file lacks at their initial
values. These checks do not rely on their reports: they compare the file with the matrices in the adapted network.

Shape legend: r rank of a layer's two matrices, down (r, *) and up (*, r).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .weight_files import check_all_used, some

_MATRIX = re.compile(
    r"(?P<layer>.+?)(\.lora_(embedding_)?(?P<peft>[AB])|\.lora_(?P<kohya>down|up)"
    r"|(?P<tag>[._]lora(\d*|_linear_layer))\.(?P<old>down|up))(\.(?!bias)[^.]+)??(\.weight)?"
)
"""Names of the matrices, as written by peft, kohya's scripts, older versions of diffusers, and others."""
_TOLERANCE = 0.05
"""Relative tolerance of the size of a layer's change, because loaders round what they rescale."""


class Layer(NamedTuple):
    """Names of the tensors in a file for one layer."""

    down: str
    up: str
    alpha: str | None


def layers_of(path: str | Path, tensors: Mapping[str, Tensor]) -> list[Layer]:
    """Return the layers of a LoRA file.

    Raises:
        InputError: a layer lacks one of its two matrices, the two do not fit each other, a scale (alpha) has no
            matrices, or values are not finite floating-point numbers.
    """
    check_finite(path, tensors)
    halves: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        if match := _MATRIX.fullmatch(name):
            is_down = match["peft"] == "A" or (match["kohya"] or match["old"]) == "down"
            halves[match["layer"] + (match["tag"] or "")]["down" if is_down else "up"] = name
    single = [names for names in halves.values() if len(names) == 1]
    if single:
        lacking = some(name for names in single for name in names.values())
        raise InputError(
            f"{path} lacks one of the two matrices of {len(single)} of its {len(halves)} layers, and has only "
            f"{lacking}: the file is damaged or was cut"
        )
    unpaired = [
        n for n in tensors if n.endswith(".alpha") and n.removesuffix(".alpha") not in halves and not _other(n, tensors)
    ]
    if unpaired:
        raise InputError(
            f"{path} holds {len(unpaired)} scales without matrices ({some(unpaired)}): the file is damaged or was cut"
        )
    layers = []
    for layer, names in halves.items():
        down, up = names["down"], names["up"]
        if tensors[down].ndim < 2 or tensors[up].ndim < 2 or tensors[down].shape[0] != tensors[up].shape[1]:
            shapes = " and ".join(str(tuple(tensors[name].shape)) for name in (down, up))
            raise InputError(f"{path}: the two matrices of {layer} do not fit each other; their shapes are {shapes}")
        alpha = f"{layer}.alpha"
        layers.append(Layer(down, up, alpha if alpha in tensors else None))
    return layers


def _other(alpha: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a scale belongs to matrices of another method, such as LoKr."""
    start = alpha.removesuffix("alpha")
    return any(name.startswith(start) and name != alpha for name in tensors)


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise if values are not finite floating-point numbers. A scale (alpha) may be an integer.

    Raises:
        InputError: a tensor is integer, or has values that are not finite.
    """
    whole = [name for name, t in tensors.items() if not t.is_floating_point() and not name.endswith(".alpha")]
    if whole:
        raise InputError(f"{path} holds weights as whole numbers ({some(whole)}): quantized weights are not supported")
    wrong = [name for name, t in tensors.items() if not bool(t.float().isfinite().all())]
    if wrong:
        raise InputError(f"{path} holds values that are not finite, in {len(wrong)} tensors ({some(wrong)})")


def check_all_applied(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    layers: Iterable[Layer],
    converted: Mapping[str, tuple[Tensor, frozenset[str]]],
    networks: Mapping[str, torch.nn.Module],
    *,
    scales: bool = True,
) -> None:
    """Raise if a part of the LoRA weights reached no network, or was scaled otherwise than the file states.

    Args:
        path: path of the file.
        tensors: tensors of the file.
        layers: see `layers_of`.
        converted: name → (tensor that the loader built, names of its sources in the file).
        networks: name → module with LoRA matrices that are not fused yet.
        scales: whether the scales in the file apply, rather than those in its metadata.

    Raises:
        InputError: names the tensors that were not used, are missing, or were scaled otherwise.
    """
    layers = list(layers)
    left: Counter[tuple[Any, ...]] = Counter()
    dtypes = set()
    for parameter in _matrices(networks.values()):
        left[_content(parameter)] += 1
        dtypes.add(parameter.dtype)
    made: dict[tuple[Any, ...], frozenset[str]] = {}
    used: set[str] = set()
    for tensor, names in converted.values():
        for content in (_content(tensor.to(dtype)) for dtype in dtypes):
            if left[content] > 0:
                left[content] -= 1
                made[content] = made.get(content, frozenset()) | names
                used |= names
                break
    without_effect = {
        name for layer in layers for name in layer if name and not all(bool(tensors[n].any()) for n in layer[:2])
    }
    alphas = {layer.alpha for layer in layers if layer.alpha and layer.down in used}
    users = " and ".join(networks) or "this model"
    check_all_used(path, set(tensors) - used - alphas - without_effect, users)
    if sum(left.values()):
        raise InputError(f"{path} lacks matrices for {sum(left.values())} places where they would be made up")
    if scales:
        _check_scales(path, tensors, layers, made, networks)


def _check_scales(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    layers: list[Layer],
    made: Mapping[tuple[Any, ...], frozenset[str]],
    networks: Mapping[str, torch.nn.Module],
) -> None:
    """Raise if the size of a layer's change differs from that in the file.

    Loaders may split, stack or rescale matrices. The squared Frobenius norm of α/r·up·down is the sum over its parts.
    """
    owner = {name: layer for layer in layers for name in layer[:2]}
    # Union-find: layers that share a module of the network have one root.
    group: dict[Layer, Layer] = {layer: layer for layer in layers}

    def root(layer: Layer) -> Layer:
        return layer if group[layer] is layer else root(group[layer])

    found: dict[Layer, float] = defaultdict(float)
    for size, up in _changes(networks.values()):
        sharing = [owner[name] for name in made.get(_content(up), frozenset()) if name in owner]
        if not sharing:
            continue
        for other in sharing[1:]:
            first, second = root(sharing[0]), root(other)
            if first is not second:
                group[second] = first
                found[first] += found.pop(second, 0.0)
        found[root(sharing[0])] += size
    expected: dict[Layer, float] = defaultdict(float)
    for layer in layers:
        down, up = tensors[layer.down], tensors[layer.up]
        scale = 1.0 if layer.alpha is None else float(tensors[layer.alpha]) / down.shape[0]
        expected[root(layer)] += scale**2 * _size(down, up)
    wrong = [
        layer.alpha or layer.down
        for layer in layers
        if abs(found[root(layer)] - expected[root(layer)]) > _TOLERANCE * expected[root(layer)] and root(layer) in found
    ]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} layers would be scaled otherwise than their alpha in the file says ({some(wrong)}): "
            "multiply the matrices by alpha / rank, leave alpha out, and save the file again"
        )


def _matrices(networks: Iterable[torch.nn.Module]) -> Iterator[Tensor]:
    for network in networks:
        for name, parameter in network.named_parameters():
            if ".lora_" in name or ".lokr_" in name:
                yield parameter.detach()


def _changes(networks: Iterable[torch.nn.Module]) -> Iterator[tuple[float, Tensor]]:
    """Yield the squared norm of the change of each layer with LoRA matrices, and its matrix up."""
    for network in networks:
        for module in network.modules():
            for kind in ("lora_", "lora_embedding_"):
                downs, ups = (getattr(module, f"{kind}{matrix}", None) for matrix in "AB")
                if downs is None or ups is None or len(getattr(module, "lora_magnitude_vector", ())):
                    continue
                for adapter in downs:
                    down, up = (getattr(part[adapter], "weight", part[adapter]).detach() for part in (downs, ups))
                    yield float(module.scaling[adapter]) ** 2 * _size(down, up), up  # type: ignore[index]


def _size(down: Tensor, up: Tensor) -> float:
    """Return the squared Frobenius norm of up·down, computed from two matrices (r, r)."""
    down, up = down.double().flatten(1), up.double().flatten(1)
    return float(((up.mT @ up) * (down @ down.mT)).sum())


def _content(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that identifies a tensor by shape and values. A tensor without values equals no other."""
    if tensor.is_meta:
        return tuple(tensor.shape), object()
    return tuple(tensor.shape), hash(tensor.detach().float().contiguous().numpy().tobytes())
