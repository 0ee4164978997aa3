"""What all training has in common: batches, learning rate, optimizer, average of the weights, checkpoints.

The data of step s is a function of (seed, s) alone, so that a run that was killed goes on with the very batches that
it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..denoisers.devices import one_line
from ..errors import InputError
from .checkpoint import load_checkpoint, save_checkpoint
from .muon import Muon

OPTIMIZERS = ("adamw", "muon")
NUM_EPOCHS, NUM_STEPS = 10, 500


class Recipe(Protocol):
    """How a loss is minimised; see `TrainConfig`."""

    @property
    def epochs(self) -> float | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def ema(self) -> float: ...


@dataclass(frozen=True)
class Progress:
    """State of a run after a step; `stage` is what is being trained, where that is not all."""

    step: int
    num_steps: int
    loss: float
    stage: str = ""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators, which modules draw weights and dropout from, seeded for a while and then as before."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def check_settings(config: Any, own: Mapping[str, tuple[bool, str]] | None = None) -> None:
    """Complain of settings that cannot be.

    Args:
        config: has the settings of all training, and others.
        own: whether each of the others fulfils what is required of it, and that in words.

    Raises:
        InputError: one of them.
    """
    requirements = {
        **(own or {}),
        "epochs": (config.epochs is None or config.epochs > 0, "above 0"),
        "batch_size": (config.batch_size >= 1, "at least 1"),
        "learning_rate": (config.learning_rate > 0, "above 0"),
        "warmup": (config.warmup >= 0, "at least 0"),
        "weight_decay": (config.weight_decay >= 0, "at least 0"),
        "ema": (0 <= config.ema < 1, "at least 0 and below 1"),
        "seed": (0 <= config.seed < 2**63, "at least 0 and below 2⁶³"),
    }
    for name, (fulfilled, requirement) in requirements.items():
        value = getattr(config, name)
        finite = not isinstance(value, float) or math.isfinite(value)
        if not (fulfilled and finite):
            raise InputError(f"{name} must be {requirement if finite else 'finite'}; got {value}")


def seed_of(*key: int) -> int:
    """One seed for several numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def generator_of(*key: int) -> torch.Generator:
    """A generator for several numbers."""
    return torch.Generator().manual_seed(seed_of(*key))


@lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=generator_of(seed, 0, epoch))


def batch_rows(step: int, num_images: int, batch_size: int, seed: int) -> Tensor:
    """Image indices (batch_size,) of a step: permutations laid end to end, one an epoch."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([_order(num_images, seed, p // num_images)[p % num_images] for p in positions])


def num_steps(recipe: Recipe, num_images: int, usual: float = NUM_EPOCHS) -> int:
    """Steps in all: where the recipe does not say, of the usual passes, and `NUM_STEPS` at least for few images."""
    least, epochs = (NUM_STEPS, usual) if recipe.epochs is None else (1, recipe.epochs)
    return max(least, math.ceil(epochs * num_images / recipe.batch_size))


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, of a tenth of the steps at most, then a cosine to zero at the last of them."""
    warmup = min((step + 1) / max(1, min(recipe.warmup, steps // 10)), 1.0)
    return recipe.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def build_optimizer(module: torch.nn.Module, recipe: Recipe, outer: Collection[str] = ()) -> torch.optim.Optimizer:
    """Optimizer of a module that is on its device.

    Muon is meant for maps between hidden layers: not for the first and last one, and not for embedding tables.

    Args:
        module: whose parameters are trained.
        recipe: how.
        outer: parts of the names of parameters that Muon is not meant for, such as "conv_in.".

    Raises:
        InputError: no such optimizer.
    """
    if recipe.optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer {recipe.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
    settings: dict[str, Any] = {"lr": recipe.learning_rate, "betas": (0.9, 0.99), "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True, **settings)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        groups[parameter.ndim > 1 and not any(f".{part}" in f".{name}" for part in outer)].append(parameter)
    return Muon([{"params": p, "orthogonal": inner} for inner, p in groups.items()], fused=True, **settings)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Within it, what goes wrong is the folder's fault."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        raise InputError(f"{out} cannot be written to as the folder of a model: {one_line(e)}") from e


def fit(
    module: torch.nn.Module,
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    steps: int,
    checkpoint: Path,
    run: dict[str, Any],
    *,
    defaults: dict[str, Any],
    save: Callable[[dict[str, Tensor]], None],
    outer: Collection[str] = (),
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_checkpoint: Callable[[int], None] = lambda _: None,
    stage: str = "",
) -> dict[str, Tensor]:
    """Minimise a loss, or go on minimising it; returns the exponential moving average of the weights.

    Args:
        module: on its device; it ends with the last weights.
        loss_at: the loss of a step.
        recipe: how.
        steps: in all.
        checkpoint: folder of what is needed to go on.
        run: what tells this run from others; see `load_checkpoint`.
        defaults: of settings that are younger than a checkpoint.
        save: called with the averaged weights, before each checkpoint is written.
        outer: see `build_optimizer`.
        checkpoint_every: steps between checkpoints; half of them if None, but 100 at least and 1,000 at most.
        on_step: called after each step.
        on_checkpoint: called with the step, after each checkpoint.
        stage: told to on_step.

    Raises:
        InputError: the checkpoint is of another run, or damaged; the loss is no longer finite.
    """
    weights: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    ema = {name: p.detach().clone() for name, p in weights.items()}
    optimizer = build_optimizer(module, recipe, outer)
    step = load_checkpoint(checkpoint, run, defaults, weights, ema, optimizer)
    with writing(checkpoint.parent):
        checkpoint.mkdir(parents=True, exist_ok=True)  # what is saved from now on is of a training here
    interval = checkpoint_every or min(1000, max(100, steps // 2))
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, recipe)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if not math.isfinite(value := loss.item()) or not bool(norm.isfinite()):
            raise InputError(
                f"the loss is {value} and its gradient {float(norm)} at step {step + 1}: start again in another folder "
                "with a lower learning rate"
            )
        optimizer.step()
        with torch.no_grad():
            # A young average forgets its random start faster.
            decay = min(recipe.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in weights.values()], 1 - decay)
        step += 1
        on_step(Progress(step, steps, value, stage))
        if step % interval == 0 or step == steps:
            with writing(checkpoint.parent):
                save(ema)
                save_checkpoint(checkpoint, run, step, weights, ema, optimizer)
            on_checkpoint(step)
    return ema
