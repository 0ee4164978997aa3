"""Training loop: batches, learning rate, optimizer, average of the weights, checkpoints.

The batch of step s is a function of (seed, s) alone, so that a resumed run sees the same batches as an uninterrupted
one.
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
from .checkpoint import Checkpoint, State
from .muon import Muon

OPTIMIZERS = ("adamw", "muon")
NUM_EPOCHS, NUM_STEPS = 10, 500


class OptimizerSettings(Protocol):
    """Settings with which a loss is minimised; see `TrainConfig`."""

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
    """Progress of a run after a step. `stage` names the part that is being trained, if the run has several."""

    step: int
    num_steps: int
    loss: float
    stage: str = ""


@dataclass(frozen=True)
class Callbacks:
    """Functions to which a training run reports, and how often it does so.

    Args:
        checkpoint_every: steps between checkpoints. Default: half of all steps, but between 100 and 1,000.
        on_step: called after each step.
        on_checkpoint: called with the step, after each checkpoint.
        on_stage: called at the start of each stage, with its name, its number of steps, and the images per step.
    """

    checkpoint_every: int | None = None
    on_step: Callable[[Progress], None] = lambda _: None
    on_checkpoint: Callable[[int], None] = lambda _: None
    on_stage: Callable[[str, int, int], None] = lambda *_: None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators within the context, because modules draw weights and dropout from them."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def check_settings(config: Any, own: Mapping[str, tuple[bool, str]] | None = None) -> None:
    """Raise if a setting is out of range.

    Args:
        config: settings that all training has, and others.
        own: name of a further setting → whether it fulfils its requirement, and the requirement in words.

    Raises:
        InputError: a setting is out of range.
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
    """Combine several numbers into one seed."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def generator_of(*key: int) -> torch.Generator:
    """Return a generator that is seeded with several numbers."""
    return torch.Generator().manual_seed(seed_of(*key))


@lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=generator_of(seed, 0, epoch))


def batch_rows(step: int, num_images: int, batch_size: int, seed: int) -> Tensor:
    """Return the image indices (batch_size,) of a step: concatenated permutations, one per epoch."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    return torch.stack([_order(num_images, seed, p // num_images)[p % num_images] for p in positions])


def num_steps(settings: OptimizerSettings, num_images: int, default: float = NUM_EPOCHS) -> int:
    """Return the number of steps of a run.

    Args:
        settings: settings, which state the number of epochs, or None.
        num_images: number of training images.
        default: number of epochs if the settings state none. There are at least `NUM_STEPS` steps then.
    """
    least, epochs = (NUM_STEPS, default) if settings.epochs is None else (1, settings.epochs)
    return max(least, math.ceil(epochs * num_images / settings.batch_size))


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Return the learning rate: linear warm-up for at most a tenth of the steps, then a cosine to zero."""
    warmup = min((step + 1) / max(1, min(settings.warmup, steps // 10)), 1.0)
    return settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / steps))


def build_optimizer(
    module: torch.nn.Module, settings: OptimizerSettings, outer: Collection[str] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer of a module that is on its device.

    Muon is meant for maps between hidden layers: not for the first and last layer, and not for embedding tables.

    Args:
        module: module whose parameters are trained.
        settings: settings of the optimizer.
        outer: parts of the names of parameters that Muon is not meant for, such as "conv_in.".

    Raises:
        InputError: there is no such optimizer.
    """
    if settings.optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer {settings.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
    options: dict[str, Any] = {
        "lr": settings.learning_rate, "betas": (0.9, 0.99), "weight_decay": settings.weight_decay, "fused": True
    }  # fmt: skip
    if settings.optimizer == "adamw":
        return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], **options)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        groups[parameter.ndim > 1 and not any(f".{part}" in f".{name}" for part in outer)].append(parameter)
    return Muon([{"params": p, "orthogonal": inner} for inner, p in groups.items()], **options)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn errors within the context into an InputError that names the folder, because it cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as e:
        raise InputError(f"{out} cannot be written to as the folder of a model: {one_line(e)}") from e


def fit(
    module: torch.nn.Module,
    loss_at: Callable[[int], Tensor],
    settings: OptimizerSettings,
    steps: int,
    checkpoint: Checkpoint,
    save: Callable[[dict[str, Tensor]], None],
    *,
    outer: Collection[str] = (),
    callbacks: Callbacks = Callbacks(),
    stage: str = "",
) -> dict[str, Tensor]:
    """Minimise a loss, or resume doing so. Returns the exponential moving average of the weights.

    Args:
        module: module on its device. It ends with the last weights.
        loss_at: function from the index of a step to its loss.
        settings: settings of the optimizer.
        steps: number of steps.
        checkpoint: checkpoint to resume from, and to write.
        save: called with the averaged weights, before each checkpoint is written.
        outer: see `build_optimizer`.
        callbacks: see there.
        stage: name of the stage, for `Progress`.

    Raises:
        InputError: the checkpoint belongs to another run, or is damaged; the loss is no longer finite.
    """
    weights: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    ema = {name: p.detach().clone() for name, p in weights.items()}
    optimizer = build_optimizer(module, settings, outer)
    state = State(weights, ema, optimizer)
    step = checkpoint.load(state)
    with writing(checkpoint.folder.parent):
        checkpoint.folder.mkdir(parents=True, exist_ok=True)  # marks what is saved from now on as trained here
    interval = callbacks.checkpoint_every or min(1000, max(100, steps // 2))
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, settings)
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
            decay = min(settings.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in weights.values()], 1 - decay)
        step += 1
        callbacks.on_step(Progress(step, steps, value, stage))
        if step % interval == 0 or step == steps:
            with writing(checkpoint.folder.parent):
                save(ema)
                checkpoint.save(step, state)
            callbacks.on_checkpoint(step)
    return ema
