"""Denoising loss of all models that are trained here: settings, times, loss."""

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
    """Settings for the training of a diffusion model.

    Args:
        objective: prediction type of the network, one of `OBJECTIVES`. "flow" has its own schedule.
        beta_schedule: schedule of diffusers' DDPMScheduler, one of `BETA_SCHEDULES`.
        times: distribution of the training times: one of `TIMES`, which are even or, as for Stable Diffusion 3, denser
            in the middle; or a density as `timestep_weights.read_weights` returns it, for example from `calibrate`.
        weighting: squared error that is minimised: "output" for that of the network's output, "noise" for that of the
            ε computed from it, which a classifier compares.
        patch_size: p×p pixels are folded into channels before the network.
        channels: width of each resolution level, from high to low resolution.
        layers: number of residual blocks per level.
        attention: whether all blocks of the lowest resolution have attention, to the image and to captions, and not
            only the middle block.
        dropout: dropout in the residual blocks.
        head: width of each level of a head, which alone takes the class. The network above is then a trunk for all
            classes; see `denoisers.families.late`. Empty for no head.
        trunk: architecture of the trunk, one of `TRUNKS`: "unet", or "transformer" with one width and `layers` layers.
        head_layers: number of residual blocks per level of the head, plus two if it has several levels.
        features: number of channels between trunk and head.
        epochs: number of passes over the training images; see `loop.num_steps` for None.
        batch_size: images per step.
        optimizer: one of `OPTIMIZERS`. "muon" is for kernels and matrices between the first and last convolution.
        learning_rate: peak of the cosine schedule.
        warmup: steps of linear warm-up, at most a tenth of all steps.
        weight_decay: weight decay of the optimizer, as a share of the learning rate.
        ema: decay of the exponential moving average that is saved.
        label_dropout: share of images with the null class, which trains the unconditional prediction.
        joint: weight λ of the cross-entropy over classes; see `joint`. 0 for the denoising error alone.
        rivals: number of negatives, drawn again for each image and step. 0 for all other classes.
        flip: whether to flip images at random.
        start: model with the initial weights, as `load_denoiser` takes it. Empty for random weights.
        seed: seed of initial weights, data order, noise, times and dropout.

    Raises:
        InputError: a value is out of range.
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
    """Load the weights of the model that training starts from.

    Args:
        network: network with the shape that the settings describe.
        config: settings that name the model.
        class_names: class names of the data. Empty for captions.

    Raises:
        InputError: there is no such model, or it has another shape or other classes.
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
    """Build the scheduler that is saved with a model. `settings` are further arguments of DDPMScheduler."""
    if config.objective == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDPMScheduler(beta_schedule=config.beta_schedule, prediction_type=config.objective, **settings)


def draw_times(count: int, config: TrainConfig, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Draw the times of a batch, (count,)."""
    # One in each part of the schedule, so that the loss of a batch varies less than with independent times.
    u = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    if not isinstance(config.times, str):
        grid = torch.linspace(0, 1, 1001, dtype=torch.float64)
        share = weights_at(config.times, (grid[1:] + grid[:-1]) / 2).cumsum(0)
        u = torch.from_numpy(np.interp(u, np.concatenate([[0], share / share[-1]]), grid)).float()
    elif config.times == "logit-normal":
        u = torch.special.ndtri(u).sigmoid()
    return schedule.timesteps(u.clamp(max=1 - 2**-24))  # the sum may be rounded up to 1


@dataclass(frozen=True)
class Noised:
    """A noised batch.

    Args:
        x: images or latents, (B, *).
        noise: ε, (B, *).
        t: times, (B,).
        schedule: schedule of the model.
        device: device of the network, to which results are moved.
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
        """Return the network's output for x_t and t, with autocast to bfloat16 and random numbers seeded by step."""
        # Transformers of diffusers draw random numbers for label dropout, even without classes.
        by_chance = config.dropout or config.trunk == "transformer"
        with (
            seeded(seed_of(config.seed, 2, step)) if by_chance else nullcontext(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=autocast),
        ):
            return network(self.noisy, self.t.to(self.device))

    def loss(self, output: Tensor, config: TrainConfig) -> Tensor:
        """Return the mean squared error of the network's output, (B, *)."""
        if config.weighting == "noise":
            output = to_noise(output, self.noisy, *self.coefficients, config.objective)
            goal = self.noise
        else:
            goal = target(self.x, self.noise, *self.schedule(self.t), config.objective)
        return (output.float() - goal.to(self.device)).square().mean()

    def errors(self, output: Tensor, config: TrainConfig) -> Tensor:
        """Return the mean squared error of ε, computed from the output (B, M, *), for each of M classes, (B, M)."""
        b, m = output.shape[:2]
        rows = torch.arange(b, device=self.device).repeat_interleave(m)
        alpha, sigma = (a[rows] for a in self.coefficients)
        noise = to_noise(output.flatten(0, 1), self.noisy[rows], alpha, sigma, config.objective)
        return (noise - self.noise.to(self.device)[rows]).square().flatten(1).mean(1).view(b, m)
