"""Losses between predicted and added noise: one number per row.

Shape legend: B rows of one network batch, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi

import torch
from torch import Tensor

from ..errors import InputError
from .schedules import DiscreteVP, Schedule

Loss = Callable[[Tensor, Tensor], Tensor]


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


LOSSES: dict[str, Loss] = {
    "l2": lambda a, b: _mean((a - b).square()),
    "l1": lambda a, b: _mean((a - b).abs()),
    # Threshold 1, the default of torch.nn.functional.huber_loss.
    "huber": lambda a, b: _mean(torch.nn.functional.huber_loss(a, b, reduction="none")),
}
"""Name → loss between ε and ε̂, both (B, *), float32: (B,), averaged over dimensions."""

BOUNDS = {"vlb": 0.0, "l2+vlb": 1.0}
"""Losses of networks that also predict the variance: the variational bound plus this multiple of "l2"."""


def check_loss(name: str) -> None:
    """Raise if there is no loss of this name.

    Raises:
        InputError: The name is neither in `LOSSES` nor in `BOUNDS`.
    """
    if name not in LOSSES and name not in BOUNDS:
        raise InputError(f"loss {name!r} is not one of {', '.join([*LOSSES, *BOUNDS])}")


def variational_bound(noise: Tensor, predicted: Tensor, variance: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Return one step's term of the variational bound, (B,), float32, in bits per dimension (Ho et al. 2020, eq. 5).

    The term is KL(q(x_{t-1}|x_t, x) ‖ p(x_{t-1}|x_t, c)). The network interpolates the variance of p between its lower
    and upper bound (Nichol & Dhariwal 2021, equation 15). At t = 0 the term is -log p(x|x_0, c), as a density. The
    mean over times, multiplied by T·ln 2 and the number of dimensions, is the bound in nats.

    Args:
        noise: ε, (B, *), float32.
        predicted: ε̂, (B, *), float32.
        variance: Predicted variance, (B, *): -1 for the lower bound, 1 for the upper.
        t: (B,), int64, on the CPU.
        schedule: A `DiscreteVP`.

    Raises:
        InputError: The schedule is not a `DiscreteVP`.
    """
    if not isinstance(schedule, DiscreteVP):
        raise InputError("the variational bound is of models with a table of times: use the loss l2, l1 or huber")
    table = schedule.alphas_cumprod.to("cpu", torch.float64)
    before = torch.cat([table.new_ones(1), table[:-1]])
    step = (table / before).clamp(min=1e-12)  # 0 at the end of a schedule with zero terminal SNR
    beta = 1 - step
    posterior = beta * (1 - before) / (1 - table)
    posterior[0] = posterior[1]  # it is 0, which has no logarithm

    def at_rows(values: Tensor) -> Tensor:
        return values[t].float().view(-1, *[1] * (noise.ndim - 1)).to(noise.device)

    low, high = at_rows(posterior.log()), at_rows(beta.log())
    log_variance = low + (variance.float() + 1) / 2 * (high - low)
    # The means differ as ε and ε̂ do.
    shift = (predicted - noise) * at_rows(beta / (step * (1 - table)).sqrt())
    misfit = shift.square() * torch.exp(-log_variance)
    divergence = (log_variance - low + torch.exp(low - log_variance) - 1 + misfit) / 2
    density = (log(2 * pi) + log_variance + misfit) / 2
    first = (t == 0).view(-1, *[1] * (noise.ndim - 1)).to(noise.device)
    return _mean(torch.where(first, density, divergence)) / log(2)
