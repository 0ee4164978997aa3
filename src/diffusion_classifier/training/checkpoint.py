"""Checkpoints, from which an interrupted training run resumes: one safetensors file and a JSON file that names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from ..files import write_durably

CHECKPOINT = "checkpoint"
"""Folder of the checkpoint within that of a model."""


class State(NamedTuple):
    """Tensors of a training run.

    Args:
        weights: name → trained parameter.
        ema: name → its exponential moving average.
        optimizer: optimizer of these parameters.
    """

    weights: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Any


@dataclass(frozen=True)
class Checkpoint:
    """Folder of a checkpoint, and the run that it must belong to.

    Args:
        folder: folder.
        run: identity of the run: "config", "data" and "class_names".
        defaults: default of each setting, for settings that were added after a checkpoint was written.
    """

    folder: Path
    run: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def save(self, step: int, state: State) -> None:
        """Write the tensors, then the file that names them, so that a kill in between leaves the older checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights.{name}": p.detach() for name, p in state.weights.items()}
        tensors |= {f"ema.{name}": values for name, values in state.ema.items()}
        for name, parameter in state.weights.items():
            for key, value in state.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        name = f"step-{step}.safetensors"
        save_file(tensors, self.folder / name)
        write_durably(self.folder / "run.json", json.dumps({**self.run, "step": step, "tensors": name}, indent=2))
        for old in self.folder.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self, state: State) -> int:
        """Load the tensors into `state`, and return the number of finished steps: 0 without a checkpoint.

        Raises:
            InputError: the checkpoint belongs to another run, or is damaged.
        """
        path = self.folder / "run.json"
        if not path.is_file():
            return 0
        try:
            stored = json.loads(path.read_text("utf-8"))
            self._check_same_run(stored)
            path = self.folder / stored["tensors"]
            tensors = load_file(path)
            _check_tensors(tensors, state.weights)
            with torch.no_grad():
                for name, parameter in state.weights.items():
                    parameter.copy_(tensors[f"weights.{name}"])
                    state.ema[name].copy_(tensors[f"ema.{name}"])
            moments = [key.split(".", 2)[1:] for key in tensors if key.startswith("optimizer.")]
            if {name for _, name in moments} != set(state.weights):
                raise KeyError("the optimizer's state")
            for key, name in moments:
                value = tensors[f"optimizer.{key}.{name}"]
                state.optimizer.state[state.weights[name]][key] = value.to(state.weights[name].device)
            return int(stored["step"])
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
            raise InputError(f"{path} cannot be used ({e}): remove {self.folder} to start again") from e

    def _check_same_run(self, stored: Mapping[str, Any]) -> None:
        run, defaults = json.loads(json.dumps([dict(self.run), dict(self.defaults)]))
        folder = self.folder
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


def _check_tensors(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise if tensors would be left out, cast from integers, or repeated to fill a larger shape."""
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


def check_out(
    out: Path, pattern: str, *, in_stages: bool = False, what: str = "a model that no training here made"
) -> None:
    """Raise if a folder holds a model without the checkpoint of this kind of training, which would overwrite it.

    Args:
        out: folder of the model.
        pattern: name of a file of the model.
        in_stages: whether the training has several stages, each with a checkpoint in a folder of its own.
        what: content of such a folder, for the message.

    Raises:
        InputError: the folder holds such a model.
    """
    checkpoint = out / CHECKPOINT
    has_stages = any(checkpoint.glob("*/"))
    if any(out.glob(pattern)) and not (has_stages if in_stages else checkpoint.exists() and not has_stages):
        raise InputError(f"{out} holds {what}: choose another --out")
