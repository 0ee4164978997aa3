"""What is needed to go on with a training run: one safetensors file and a JSON file that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from ..files import write_durably


def save_checkpoint(
    folder: Path, run: dict[str, Any], step: int, weights: dict[str, Tensor], ema: dict[str, Tensor], optimizer: Any
) -> None:
    """One file for all tensors, and one that names it, written last: a kill in between leaves the older pair."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weights.{name}": p.detach() for name, p in weights.items()} | {f"ema.{k}": v for k, v in ema.items()}
    for name, parameter in weights.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = value
    name = f"step-{step}.safetensors"
    save_file(tensors, folder / name)
    write_durably(folder / "run.json", json.dumps(run | {"step": step, "tensors": name}, indent=2))
    for old in folder.glob("step-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(
    folder: Path,
    run: dict[str, Any],
    defaults: dict[str, Any],
    weights: dict[str, Tensor],
    ema: dict[str, Tensor],
    optimizer: Any,
) -> int:
    """The step reached, 0 without a checkpoint; a setting that is younger than the checkpoint had its default."""
    path = folder / "run.json"
    if not path.is_file():
        return 0
    try:
        stored = json.loads(path.read_text("utf-8"))
        _check_same_run(folder, stored, *json.loads(json.dumps([run, defaults])))
        path = folder / stored["tensors"]
        tensors = load_file(path)
        _check_tensors(tensors, weights)
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(tensors[f"weights.{name}"])
                ema[name].copy_(tensors[f"ema.{name}"])
        moments = [key.split(".", 2)[1:] for key in tensors if key.startswith("optimizer.")]
        if {name for _, name in moments} != set(weights):
            raise KeyError("the optimizer's state")
        for key, name in moments:
            value = tensors[f"optimizer.{key}.{name}"]
            optimizer.state[weights[name]][key] = value.to(weights[name].device)
        return int(stored["step"])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
        raise InputError(f"{path} cannot be used ({e}): remove {folder} to start again") from e


def _check_tensors(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise if tensors would be left out, cast from whole numbers, or repeated to fill a larger shape."""
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        owner = weights.get(rest.partition(".")[2] if kind == "optimizer" else rest)
        if owner is None or kind not in ("weights", "ema", "optimizer"):
            raise ValueError(f"{name} belongs to no weight of this network")
        # An optimizer may count its steps, in one number.
        if tensor.shape != owner.shape and (kind != "optimizer" or tensor.numel() > 1):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and not {tuple(owner.shape)}")
        if kind != "optimizer" and not tensor.is_floating_point():
            raise ValueError(f"{name} holds whole numbers")


def _check_same_run(folder: Path, stored: dict[str, Any], run: dict[str, Any], defaults: dict[str, Any]) -> None:
    if stored["data"] != run["data"]:
        raise InputError(f"{folder} belongs to a run on other images: choose another --out, or remove it")
    names = run["class_names"]
    if stored.get("class_names", names) != names:
        raise InputError(f"{folder} belongs to a run with other class names: choose another --out, or remove it")
    there = defaults | stored["config"]
    different = [k for k, v in run["config"].items() if there.get(k) != v]
    if different:
        values = ", ".join(f"{k} {there.get(k)!r} there, {run['config'][k]!r} now" for k in different)
        raise InputError(
            f"{folder} belongs to a run with other settings ({values}): choose another --out, or remove it"
        )
