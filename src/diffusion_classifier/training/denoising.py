"""Denoising as all models here are trained for it: settings, times, loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from ..denoisers import load_denoiser
from ..denoisers.model_settings import TIMES
from ..diffusion.prediction import target, to_noise
from ..diffusion.schedules import Schedule, add_noise
from ..diffusion.timestep_weights import Weights, read_weights, weights_at
from ..errors import InputError
from .loop import OPTIMIZERS, check_settings, seed_of, seeded

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
OBJECTIVES = ("epsilon", "v_prediction", "sample", "flow")
WEIGHTINGS = ("output", "noise")
TRUNKS = ("unet", "transformer")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        objective: what the network predicts: one of `OBJECTIVES`; "flow" has its own schedule.
        beta_schedule: of diffusers' DDPMScheduler: one of `BETA_SCHEDULES`.
        times: how those of the schedule lie that are trained at: one of `TIMES`, evenly or, as Stable Diffusion 3 does,
            the middle ones more often; or a density as `weights.read_weights` gives it, such as `calibrate` fits.
        weighting: whose squared error is minimised: "output" for what the network returns, "noise" for the ε that
            follows from it, which is what a classifier compares.
        patch_size: p×p pixels are folded into channels before the network sees them.
        channels: width of each resolution level, high to low.
        layers: residual blocks per level.
        attention: in all blocks of the lowest resolution, not in the middle one alone: to itself, and to captions.
        dropout: in the residual blocks.
        head: width of each level of a head, which alone sees the class: the network described above is then a trunk
            for all classes; see `denoisers.late`. No head if empty.
        trunk: below a head, one of `TRUNKS`: "unet", or "transformer" of one width and as many layers.
        head_layers: residual blocks per level of the head, two more where it has several levels.
        features: channels that the trunk hands to the head.
        epochs: passes over the training images; see `loop.num_steps` for None.
        batch_size: images per step.
        optimizer: one of `OPTIMIZERS`; "muon" is for the kernels and matrices between the first and last convolution.
        learning_rate: peak of the cosine schedule.
        warmup: steps of linear warm-up, a tenth of all at most.
        weight_decay: of the optimizer, as a share of the learning rate.
        ema: decay of the exponential moving average that is saved.
        label_dropout: share of images shown with the null class, which trains an unconditional row.
        joint: weight λ of the cross-entropy over classes; see `joint`. The denoising error alone if 0.
        rivals: classes that the true one is told from in a step, drawn anew for each image; all others if 0.
        flip: mirror images at random.
        start: model whose weights training starts from, as `load_denoiser` takes it; fresh ones if empty.
        seed: of initial weights, data order, noise, times and dropout.

    Raises:
        InputError: a value cannot be used.
    """

    objective: str = "v_prediction"
    beta_schedule: str = "linear"
    times: str | Weights = "even"
    weighting: str = "output"
    patch_size: int = 1
    channels: tuple[int, ...] = (64, 128)
    layers: int = 2
    attention: bool = False
    dropout: float = 0.0
    head: tuple[int, ...] = ()
    trunk: str = "unet"
    head_layers: int = 1
    features: int = 64
    epochs: float | None = None
    batch_size: int = 32
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.01
    ema: float = 0.999
    label_dropout: float = 0.1
    joint: float = 0.0
    rivals: int = 0
    flip: bool = False
    start: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "objective": OBJECTIVES,
            "beta_schedule": BETA_SCHEDULES,
            "times": TIMES,
            "weighting": WEIGHTINGS,
            "optimizer": OPTIMIZERS,
            "trunk": TRUNKS,
        }
        if not isinstance(self.times, str):
            read_weights(self.times)
            del choices["times"]
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        requirements = {
            "patch_size": (self.patch_size >= 1, "at least 1"),
            "channels": (len(self.channels) > 0 and min(self.channels) >= 1, "one or more widths of at least 1"),
            "layers": (self.layers >= 1, "at least 1"),
            "dropout": (0 <= self.dropout < 1, "at least 0 and below 1"),
            "head": (not self.head or min(self.head) >= 1, "widths of at least 1"),
            "head_layers": (self.head_layers >= 1, "at least 1"),
            "features": (self.features >= 1, "at least 1"),
            "joint": (self.joint >= 0, "at least 0"),
            "rivals": (self.rivals >= 0, "at least 0"),
            "label_dropout": (0 <= self.label_dropout < 1, "at least 0 and below 1"),
        }
        check_settings(self, requirements)
        if self.trunk == "transformer":
            if not self.head:
                raise InputError("a transformer is trained as the trunk below a head only: give the head's width")
            if len(self.channels) > 1 or self.channels[0] % (4 * max(1, self.channels[0] // 32)):
                raise InputError(
                    f"the channels of a transformer must be one width, 32 to a head of attention; got {self.channels}"
                )


def load_start(network: torch.nn.Module, config: TrainConfig, class_names: Sequence[str] = ()) -> None:
    """Give the network the weights of the model that training starts from.

    Args:
        network: as the settings have it.
        config: names the model.
        class_names: of the data; none if they are captions.

    Raises:
        InputError: there is no such model; it has another shape, or other classes.
    """
    model = load_denoiser(config.start, device="cpu", dtype="float32")
    names = tuple(model.class_names or ())
    if names != tuple(class_names):
        raise InputError(
            f"training cannot start from {config.start}: its classes are {', '.join(names) or 'texts'}, "
            f"and those of the data {', '.join(class_names) or 'texts'}"
        )
    try:
        network.load_state_dict(model.network.state_dict())
    except RuntimeError as e:
        raise InputError(
            f"training cannot start from {config.start}: its network has another shape than patch size "
            f"{config.patch_size}, channels {config.channels} and {config.layers} layers give"
        ) from e


def build_scheduler(config: TrainConfig, **settings: Any) -> SchedulerMixin:
    """The scheduler that a model is saved with; settings are those of sampling by DDPM."""
    if config.objective == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDPMScheduler(beta_schedule=config.beta_schedule, prediction_type=config.objective, **settings)


def draw_times(count: int, config: TrainConfig, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Times of a batch, (count,)."""
    # One in each part of the schedule: the loss of a batch varies less than with independent times.
    u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    if not isinstance(config.times, str):
        grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
        share = weights_at(config.times, (grid[1:] + grid[:-1]) / 2).cumsum(0)
        u = torch.from_numpy(np.interp(u, np.concatenate([[0], share / share[-1]]), grid)).float()
    elif config.times == "logit-normal":
        u = torch.special.ndtri(u).sigmoid()
    return schedule.timesteps(u.clamp(max=1 - 2**-24))  # the sum may have been rounded up to 1


@dataclass(frozen=True)
class Noised:
    """A batch as a network is shown it.

    Args:
        x: images or latents, (B, *).
        noise: ε, (B, *).
        t: (B,).
        schedule: of the model.
        device: of the network, where everything else is, too.
    """

    x: Tensor
    noise: Tensor
    t: Tensor
    schedule: Schedule
    device: torch.device

    @cached_property
    def coefficients(self) -> tuple[Tensor, Tensor]:
        """α and σ, (B,)."""
        alpha, sigma = self.schedule(self.t)
        return alpha.to(self.device), sigma.to(self.device)

    @cached_property
    def noisy(self) -> Tensor:
        """x_t."""
        return add_noise(self.x, self.noise, *self.schedule(self.t)).to(self.device)

    def predicted_by(
        self, network: Callable[[Tensor, Tensor], Tensor], step: int, config: TrainConfig, autocast: bool
    ) -> Tensor:
        """What the network makes of x_t and t; autocast is to bfloat16, and the step decides what chance does."""
        # Transformers of diffusers draw whether to show a class, even where there is none.
        by_chance = config.dropout or config.trunk == "transformer"
        with (
            seeded(seed_of(config.seed, 2, step)) if by_chance else nullcontext(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=autocast),
        ):
            return network(self.noisy, self.t.to(self.device))

    def loss(self, output: Tensor, config: TrainConfig) -> Tensor:
        """Mean squared error of the network's output, (B, *)."""
        if config.weighting == "noise":
            output = to_noise(output, self.noisy, *self.coefficients, config.objective)
            goal = self.noise
        else:
            goal = target(self.x, self.noise, *self.schedule(self.t), config.objective)
        return (output.float() - goal.to(self.device)).square().mean()

    def errors(self, output: Tensor, config: TrainConfig) -> Tensor:
        """Mean squared error of the noise that follows from the output (B, M, *) for each of M classes, (B, M)."""
        b, m = output.shape[:2]
        rows = torch.arange(b, device=self.device).repeat_interleave(m)
        alpha, sigma = (a[rows] for a in self.coefficients)
        noise = to_noise(output.flatten(0, 1), self.noisy[rows], alpha, sigma, config.objective)
        return (noise - self.noise.to(self.device)[rows]).square().flatten(1).mean(1).view(b, m)
