"""Noise schedules: t → (α_t, σ_t) with x_t = α_t·x + σ_t·ε, read from the config of a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from math import inf, isinf, log
from typing import Any, ClassVar, Protocol

import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor

from ..errors import InputError


class Schedule(Protocol):
    """Interface of a noise schedule. Times are tensors of any shape."""

    @property
    def sigma_data(self) -> float:
        """Divisor of images or latents that makes x: their standard deviation for EDM, otherwise 1."""

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps, T."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t), float32, in the shape and on the device of t.

        Raises:
            InputError: A time lies outside the schedule.
        """

    def timesteps(self, u: Tensor) -> Tensor:
        """Return the times at fractions u in [0, 1) of the schedule: int64 for a table, otherwise float32."""

    def network_time(self, t: Tensor) -> Tensor:
        """Return the network's time input for time t."""


@dataclass(frozen=True, eq=False)
class DiscreteVP:
    """A variance-preserving table: α_t² + σ_t² = 1 for the integers 0 ≤ t < T (paper, section 3.1).

    Args:
        alphas_cumprod: ᾱ, (T,), decreasing, in [0, 1]. The last one may be 0 (zero terminal SNR).
    """

    sigma_data: ClassVar[float] = 1.0
    alphas_cumprod: Tensor
    _alpha: Tensor = field(init=False, repr=False)
    _sigma: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Both roots are computed in float64, because 1 - ᾱ loses digits if ᾱ is close to 1.
        table = self.alphas_cumprod.to("cpu", torch.float64)
        object.__setattr__(self, "_alpha", table.sqrt().float())
        object.__setattr__(self, "_sigma", (1 - table).sqrt().float())

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps, T."""
        return len(self.alphas_cumprod)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t); see `Schedule`."""
        index = t.to("cpu", torch.int64)
        wrong = (index != t.cpu()) | (index < 0) | (index >= self.num_timesteps)
        if bool(wrong.any()):
            given = float(t.cpu()[wrong].flatten()[0])
            raise InputError(
                f"timesteps of this model are whole numbers from 0 to {self.num_timesteps - 1}; got {given:g}"
            )
        return self._alpha[index].to(t.device), self._sigma[index].to(t.device)

    def timesteps(self, u: Tensor) -> Tensor:
        """Return ⌊u·T⌋, int64."""
        return (u.double() * self.num_timesteps).long()

    def network_time(self, t: Tensor) -> Tensor:
        """Return t itself."""
        return t


@dataclass(frozen=True)
class RectifiedFlow:
    """Rectified flow: α_t = 1 - t/T, σ_t = t/T for real 0 ≤ t ≤ T.

    The `shift` of a diffusers config changes the times at which a sampler visits the path, not the path itself.
    """

    sigma_data: ClassVar[float] = 1.0
    num_timesteps: int = 1000

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t); see `Schedule`."""
        sigma = t.float() / self.num_timesteps
        wrong = (sigma < 0) | (sigma > 1)
        if bool(wrong.any()):
            given = float(t[wrong].flatten()[0])
            raise InputError(f"times of this flow model lie between 0 and {self.num_timesteps}; got {given:g}")
        return 1 - sigma, sigma

    def timesteps(self, u: Tensor) -> Tensor:
        """Return u·T, float32."""
        return (u.double() * self.num_timesteps).float()

    def network_time(self, t: Tensor) -> Tensor:
        """Return t itself."""
        return t


@dataclass(frozen=True)
class EDM:
    """Noise of standard deviation s with the scaling of Karras et al. (2022, table 1): (image + s·ε) / √(s² + σ_d²).

    With x = image / σ_d this is variance-preserving: α = σ_d / √(s² + σ_d²), σ = s / √(s² + σ_d²). The levels s follow
    their equation 5, from the lowest at t = 0 to the highest at t = T.

    Args:
        sigma_min: Lowest s.
        sigma_max: Highest s.
        sigma_data: σ_d.
        rho: Exponent of the ramp; infinite for even spacing in log s.
        num_timesteps: T.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    rho: float = 7.0
    num_timesteps: int = 1000

    def levels(self, t: Tensor) -> Tensor:
        """Return s at the times t, float64."""
        u = t.double() / self.num_timesteps
        if isinf(self.rho):
            return torch.exp(log(self.sigma_min) + u * log(self.sigma_max / self.sigma_min))
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        levels: Tensor = (low + u * (high - low)) ** self.rho
        return levels

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t); see `Schedule`."""
        wrong = (t < 0) | (t > self.num_timesteps)
        if bool(wrong.any()):
            given = float(t[wrong].flatten()[0])
            raise InputError(f"times of this model lie between 0 and {self.num_timesteps}; got {given:g}")
        s = self.levels(t)
        root = (s**2 + self.sigma_data**2).sqrt()
        return (self.sigma_data / root).float(), (s / root).float()

    def timesteps(self, u: Tensor) -> Tensor:
        """Return u·T, float32."""
        return (u.double() * self.num_timesteps).float()

    def network_time(self, t: Tensor) -> Tensor:
        """Return log(s) / 4."""
        return (self.levels(t).log() / 4).float()


def add_noise(x: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return x_t = α_t·x + σ_t·ε, float32, for x and noise (B, *), alpha and sigma (B,)."""
    shape = (-1, *[1] * (x.ndim - 1))
    return alpha.view(shape) * x + sigma.view(shape) * noise


# EDMEulerScheduler is one of diffusers' Karras schedulers, but adds noise without scaling the image down.
_VP_SCHEDULERS = {scheduler.name for scheduler in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"} | {
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "SASolverScheduler",
    "RePaintScheduler",
}


def read_scheduler(config: Mapping[str, Any]) -> tuple[Schedule, str]:
    """Read the schedule and the prediction type (one of `PREDICTION_TYPES`) from a scheduler's config.

    Samplers differ in their steps, but all use the table with which the network was trained, and `DDPMScheduler`
    builds it. Therefore it does not matter that some schedulers apply a table of their own before `set_timesteps`
    (DPMSolver, UniPC, DEIS) or add noise in another parametrisation (Euler).

    Raises:
        InputError: The config names no class, or a class whose noise is not supported.
    """
    if "_class_name" not in config:
        raise InputError("this scheduler config does not name its class: _class_name is missing")
    name = str(config["_class_name"])
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"scheduler {name} has num_train_timesteps {steps!r}; a whole number from 1 is needed")
    prediction_type = str(config.get("prediction_type", "epsilon"))
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas") or prediction_type == "flow_prediction":
        return RectifiedFlow(steps), "flow"
    if name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"):
        return _read_edm(config, prediction_type)
    if name not in _VP_SCHEDULERS:
        raise InputError(
            f"scheduler {name} is not supported: its noise is neither a variance-preserving table, nor a rectified "
            "flow, nor EDM's. Save the pipeline with the scheduler that it was trained with, such as DDPMScheduler."
        )
    if config.get("timestep_type", "discrete") != "discrete":
        raise InputError(f"scheduler {name} has continuous timesteps (EDM), which are not supported.")
    if prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"scheduler {name} states the prediction type {prediction_type!r}, which is not known.")
    own = signature(DDPMScheduler.__init__).parameters
    table = DDPMScheduler(**{key: value for key, value in config.items() if key in own})
    if not ((table.betas >= 0) & (table.betas <= 1)).all():  # false for NaN, too
        betas = ", ".join(f"{key} {config.get(key)!r}" for key in ("beta_start", "beta_end", "beta_schedule"))
        raise InputError(f"scheduler {name} has betas that are not between 0 and 1 ({betas})")
    return DiscreteVP(table.alphas_cumprod), prediction_type


def _read_edm(config: Mapping[str, Any], prediction_type: str) -> tuple[EDM, str]:
    types = {"epsilon": "edm", "v_prediction": "v_prediction"}
    if prediction_type not in types:
        raise InputError(f"an EDM scheduler states the prediction type {prediction_type!r}, which is not known.")
    rho = inf if config.get("sigma_schedule") == "exponential" else float(config.get("rho", 7.0))
    given = {name: float(config[name]) for name in ("sigma_min", "sigma_max", "sigma_data") if name in config}
    for key, value in {**given, "rho": rho}.items():
        if not value > 0 or (value == inf and key != "rho"):
            raise InputError(f"an EDM scheduler has {key} {value}; a finite number above 0 is needed")
    return EDM(**given, rho=rho, num_timesteps=int(config.get("num_train_timesteps", 1000))), types[prediction_type]
