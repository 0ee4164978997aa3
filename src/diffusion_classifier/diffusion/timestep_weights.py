"""Timestep weights: the weight of an error at time t. The paper's are uniform (section 3.1).

Weights are numbers at evenly spaced times from the start of the schedule to its end, with linear interpolation. Their
scale does not matter, because they are normalised to a mean of 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .schedules import EDM, DiscreteVP, Schedule

Weights = tuple[float, ...]
WeightsSource: TypeAlias = Callable[[Tensor], Tensor] | Sequence[float] | str | Path
"""Forms of weights that `read_weights` accepts."""
SAMPLES = 1001
"""Number of times at which a function is sampled."""


def read_weights(source: WeightsSource) -> Weights:
    """Return normalised weights.

    Args:
        source: A function of the fraction u = t/T of the schedule (0 is without noise), (N,) → (N,), such as
            `lambda u: torch.exp(-7 * u)`; a list of numbers; or a JSON file with such a list, alone or as "weights" of
            a calibration.

    Raises:
        InputError: The file cannot be read; or the numbers are negative, not finite, all zero, or fewer than two.
    """
    values: Any
    if callable(source):
        try:
            values = source(torch.linspace(0, 1, SAMPLES, dtype=torch.float64))
        except (TypeError, ValueError, RuntimeError) as e:
            raise InputError(f"timestep weights must be a function of a tensor of times; it fails with: {e}") from e
    elif isinstance(source, str | Path):
        try:
            values = json.loads(Path(source).read_text("utf-8"))
        except (OSError, ValueError) as e:
            raise InputError(f"{source} cannot be read as weights, a JSON list of numbers: {e}") from e
        values = values.get("weights") if isinstance(values, dict) else values
    else:
        values = source
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or len(numbers) < 2:
        raise InputError(f"timestep weights must be at least two numbers, from no noise to pure noise; got {values!r}")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.any()):
        raise InputError(f"timestep weights must be finite, none below 0 and some above; got {numbers.tolist()}")
    return tuple((numbers / (numbers[1:] + numbers[:-1]).mean() * 2).tolist())


def weights_at(weights: Weights, u: Tensor) -> Tensor:
    """Return w at fractions u in [0, 1] of the schedule, of any shape; float64."""
    return torch.as_tensor(np.interp(u.double().numpy(), np.linspace(0, 1, len(weights)), weights))


def elbo_weights(schedule: Schedule, t: Tensor) -> Tensor:
    """Return w(t), (N,), float64, for which the mean over uniform t of summed ℓ2 errors is the variational bound.

    -log p(x|c) ≤ ½ ∫ E‖ε - ε̂‖² dλ + const with λ = log α²/σ² (Kingma et al. 2021, "Variational diffusion models",
    section 5: continuous time), with equality for the optimal denoiser (Kong et al. 2023, "Information-theoretic
    diffusion"); hence w(t) = ½ |dλ/du| with u = t/T. The paper uses uniform weights (section 3.1). With these weights,
    the posterior of an optimal denoiser is the true one. `mean_errors` divides by Σw: to get the bound from it, use
    reduction "sum" and the temperature 1 / (mean of w over uniform t).
    """
    if isinstance(schedule, DiscreteVP):
        steps = torch.arange(schedule.num_timesteps)
        alpha, sigma = (a.double() for a in schedule(steps))
        # ᾱ may end at 0, where λ is -∞: that step takes the slope of the one before it.
        log_snr = 2 * torch.log(alpha / sigma)
        log_snr[-1] = log_snr[-1] if alpha[-1] > 0 else 2 * log_snr[-2] - log_snr[-3]
        slope = torch.gradient(log_snr)[0] * schedule.num_timesteps
        return 0.5 * slope.abs()[t.long()]
    if isinstance(schedule, EDM):  # λ = -2 log s/σ_d
        ends = (t.double() + torch.tensor([[-1e-3], [1e-3]])).clamp(0, schedule.num_timesteps)
        return schedule.levels(ends).log().diff(dim=0)[0] / ends.diff(dim=0)[0] * schedule.num_timesteps
    alpha, sigma = (a.double() for a in schedule(t))
    # λ = 2 log((1 - σ)/σ); at the very ends, where the errors do not depend on the class, the slope is capped.
    return 1 / (alpha * sigma).clamp(min=1e-6)
