"""Default timestep weights of a model, for which none were fitted."""

from __future__ import annotations

import torch

from ..diffusion.timestep_weights import SAMPLES, Weights, read_weights
from .base import Denoiser


def training_weights(denoiser: Denoiser, loss: str = "l2") -> Weights:
    """Return the timestep weights under which errors of ε equal the training loss of the network.

    A network that returns y is trained on ‖y - ŷ‖² at times of some density. ‖ε - ε̂‖² is α² times this loss for
    velocity, flow and EDM, and α²/σ² times for x. The density is `Denoiser.time_density`. At the noisy end, where α is
    0, weights would be unbounded, so α is at least 0.01 there.

    Args:
        denoiser: model.
        loss: loss of the errors. Errors of l1 are not squared, and neither are their factors.
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
    """Return the timestep weights of a model for which none were fitted, or None for uniform weights as in the paper.

    Two kinds of networks use their training weights (docs/strategies.md states the gain). (1) Networks that return x:
    the conversion to ε divides errors by σ, so that times with little noise dominate a uniform average. (2) Networks
    that were trained at uneven times, which predict worse at some times.
    """
    exception = denoiser.prediction_type == "sample" or denoiser.times != "even"
    return training_weights(denoiser, loss) if exception else None
