"""Timestep weights of models for which nobody fitted any."""

from __future__ import annotations

import torch

from ..diffusion.timestep_weights import SAMPLES, Weights, read_weights
from .base import Denoiser


def training_weights(denoiser: Denoiser, loss: str = "l2") -> Weights:
    """Weights over time under which errors of ε count as those that the network was trained to make small.

    A network that returns y is trained on ‖y - ŷ‖² at times of some density; ‖ε - ε̂‖² is α² times that for velocity,
    flow and EDM, α²/σ² times for x. The density is even but for Stable Diffusion 3, whose is known. At the noisy end,
    where α is 0, weights would have no bound: there α counts as 0.01 at least.

    Args:
        denoiser: the model.
        loss: of the errors; those of l1 are not squared, and so are their factors.
    """
    u = torch.linspace(0, 1, SAMPLES, dtype=torch.float64)
    t = denoiser.schedule.timesteps(u.clamp(max=1 - 2**-24))
    alpha, sigma = (a.double() for a in denoiser.schedule(t))
    squared = alpha.clamp(min=0.01) ** 2
    kind = denoiser.prediction_type
    ratio = torch.ones_like(u) if kind == "epsilon" else (sigma**2 if kind == "sample" else 1.0) / squared
    ratio = ratio.sqrt() if loss == "l1" else ratio
    return read_weights((ratio * denoiser.time_density(u)).tolist())


def default_weights(denoiser: Denoiser, loss: str = "l2") -> Weights | None:
    """Weights over time where nobody fitted any: uniform, the paper's choice, with two exceptions.

    Networks that return x: to make ε of it, errors are divided by σ, so that in a uniform average those at times with
    little noise drown the others. And networks that were not trained at even times, which know less of some. For both,
    those of their training (docs/strategies.md has what they gain).
    """
    exception = denoiser.prediction_type == "sample" or denoiser.times != "even"
    return training_weights(denoiser, loss) if exception else None
