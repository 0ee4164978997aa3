"""Sequential elimination: draw by draw, drop every class that is behind beyond doubt.

What is promised: with probability 1 - error_rate or more, the class that has the least mean error over all N draws is
not dropped. There are two grounds for it.

*Calibrated*: on images like those to come the model has been seen to choose, and it is known how far the class that won
in the end was ever behind. If the class to win on a new image is dropped, it has been further behind than on all but a
share error_rate of those, which happens on no more than that share of images, whatever the errors are distributed like
(split conformal prediction; Vovk, Gammerman and Shafer 2005, "Algorithmic learning in a random world"). The promise is
one on average over images. How far behind: by the sum of errors, not their mean, as in Wald's test (1945, "Sequential
tests of statistical hypotheses"). For the sum the best threshold does not depend on how many draws there were, where
the variance of a difference between classes is in proportion to its mean; which is so for a good model, whose
difference of squared errors is ‖Δ‖² plus a multiple of Δ, the difference of predictions.

*Not calibrated*: an e-process, whose chance to ever reach 1/error_rate is at most error_rate (Ville 1939), for every
single image. For each pair of classes it is the ratio of likelihoods of Student's t under a positive effect, drawn from
half a standard normal distribution, and under none (Lai 1976, "On confidence sequences"; Wang and Ramdas 2024,
"Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"); for a class it is the mean
over its rivals. Differences between classes are taken to be normal and alike over draws; simulations show it to hold
far beyond that. It is careful, so it takes several times the evaluations.

Shape legend: K classes, N draws, k classes still compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtr
from torch import Tensor

from ...errors import InputError
from .base import TIE, Request, State

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sequential:
    """Drop every class that is behind beyond doubt, until one is left or the draws are used up; see the module.

    The classes that the last round compared stay comparable: the posterior is over them.

    Args:
        max_draws: N, after which whoever leads wins.
        error_rate: accepted chance of dropping the class that would lead after N draws.
        lags: how far, on images for calibration, the class that led after N draws ever was behind, ascending: see
            `largest_lag`; None for the bound that holds without any.

    Raises:
        InputError: fewer than one draw, an error rate outside (0, 1) or too small for so few lags, lags out of order.
    """

    max_draws: int
    error_rate: float = 0.01
    lags: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_draws < 1:
            raise InputError(f"at least 1 draw is needed; got {self.max_draws}")
        if not 0 < self.error_rate < 1:
            raise InputError(f"the error rate must lie between 0 and 1; got {self.error_rate:g}")
        if self.lags is not None and not (np.isfinite(self.lags).all() and (np.diff(self.lags) >= 0).all()):
            raise InputError("the lags of a calibration must be finite and ascending")
        if self.lags is not None and self.error_rate * (len(self.lags) + 1) < 1:
            raise InputError(
                f"an error rate of {self.error_rate:g} needs a calibration on at least {1 / self.error_rate - 1:.0f} "
                f"images; this one has {len(self.lags)}"
            )

    def init(self, num_classes: int) -> State:
        """See `Strategy.init`."""
        everyone = torch.ones(num_classes, dtype=torch.bool)
        errors = torch.full((num_classes, self.max_draws), torch.nan)
        return State(errors, everyone, doubt=everyone.double(), undecided=everyone)

    def propose(self, state: State) -> Request | None:
        """See `Strategy.propose`. A draw a round at first; later a sixteenth of those before, since little changes."""
        assert state.undecided is not None
        left = state.undecided.nonzero().squeeze(1)
        if len(left) == 1 or state.stage == self.max_draws:
            return None
        round_size = 1 + state.stage // 16
        return Request(left, range(state.stage, min(state.stage + round_size, self.max_draws)))

    def update(self, state: State, errors: Tensor) -> State:
        """See `Strategy.update`."""
        request = self.propose(state)
        assert request is not None
        assert state.doubt is not None
        left, n = request.classes, request.draws.stop
        table = state.errors.clone()
        table[left, request.draws.start : n] = errors
        sums = state.counted(table[left, :n]).sum(1)
        doubt = state.doubt.clone()
        doubt[left] = doubt[left].minimum(self._doubt(replace(state, errors=table), left, n, sums))
        out = doubt[left] <= self.error_rate
        out[sums.argmin()] = False
        undecided = torch.zeros_like(state.active)
        undecided[left[~out]] = True
        if n == self.max_draws:  # nothing more to come, so that who is behind now is behind
            doubt[left] = (sums <= sums.min() * (1 + TIE)).double()
        active = torch.zeros_like(state.active)
        active[left] = True
        return replace(state, errors=table, active=active, stage=n, doubt=doubt, undecided=undecided)

    def _doubt(self, state: State, left: Tensor, n: int, sums: Tensor) -> Tensor:
        """(k,): see `State.doubt`. After n draws, with sums (k,) of errors as they count."""
        if self.lags is not None:
            as_far = len(self.lags) - torch.searchsorted(self._sorted_lags, sums - sums.min())
            return (1 + as_far).double() / (1 + len(self.lags))
        counted, num_draws = state.counted(state.errors[:, :n]), self.max_draws
        if state.weights is not None:  # draws that do not count are none
            counted, num_draws = counted[:, state.weights[:n] > 0], int((state.weights > 0).sum())
        if not counted.shape[1]:
            return torch.ones(len(left), dtype=torch.float64)
        evidence = mean_e_values(counted.numpy(), left.numpy(), num_draws)
        return torch.from_numpy(1 / np.maximum(evidence, 1))

    def among(self, num_classes: int) -> Sequential:  # noqa: ARG002 - of the protocol
        """See `Strategy.among`. Lags remain: if the class that would win among all is still there, it wins among fewer,
        and is behind no further. If it is not, nothing is promised about the one that wins instead.
        """
        return self

    @cached_property
    def _sorted_lags(self) -> Tensor:
        return torch.tensor(self.lags, dtype=torch.float64)

    def __str__(self) -> str:
        """sequential:250/0.01."""
        return f"sequential:{self.max_draws}/{self.error_rate:g}"


def largest_lag(errors: Tensor) -> float:
    """How far the class that led at the end ever was behind whoever led then.

    Args:
        errors: full error table (K, N).

    Returns:
        The largest difference of sums of errors over the first n draws, n from 1 to N; at least 0.
    """
    sums = errors.double().cumsum(1)
    return float((sums[sums[:, -1].argmin()] - sums.amin(0)).max())


def mean_e_values(table: Array, left: NDArray[np.int64], num_draws: int) -> Array:
    """For each class that is left the evidence (k,) that it does not win after all draws: the mean over its rivals.

    A rival that was dropped is met on the draws that it has.

    Args:
        table: (K, n), NaN where never evaluated; what is known of a class are its first draws.
        left: (k,), the classes that have all n draws.
        num_draws: N. The mean over the first n draws differs from that over all N by less than from the expectation: as
            a Brownian bridge, which in the time n / (1 - n/N) is a Brownian motion. With n = N it is the expectation
            that is asked about.
    """
    known = (~np.isnan(table)).astype(np.float64)
    centred = np.nan_to_num(table - table[left].mean(0))
    mine, n = centred[left], known.sum(1)
    sums = mine @ known.T - centred.sum(1)  # (k, K), of differences over the draws that both have
    squares = (mine**2) @ known.T + (centred**2).sum(1) - 2 * mine @ centred.T
    rounding = (TIE * np.nanmean(np.abs(table))) ** 2
    spread = np.maximum(squares - sums**2 / n, n * rounding)
    effective = np.divide(n, 1 - n / num_draws, out=n.copy(), where=n < num_draws)
    log_e = log_e_value(sums / n, spread, n, effective)
    log_e[:, n < 2] = -np.inf
    log_e[np.arange(len(left)), left] = -np.inf
    evidence: Array = np.exp(np.minimum(log_e, 100)).sum(1) / (len(table) - 1)
    return evidence


def log_e_value(mean: Array, spread: Array, n: Array, effective: Array) -> Array:
    """log of the one-sided e-value for a positive mean difference, of any shape.

    Args:
        mean: of n differences.
        spread: sum of their squared deviations from it, above 0.
        n: how many there are.
        effective: how many independent ones would tell as much of the mean.
    """
    q = effective * mean**2
    shrunk = q / (1 + effective)  # the part of q that an effect from the standard normal does not explain
    two_sided = 0.5 * (n * (np.log1p(q / spread) - np.log1p(shrunk / spread)) - np.log1p(effective))
    # What is known of the effect then is Student's t with n degrees of freedom: twice its part above 0.
    location = effective * mean / (1 + effective)
    scale = np.sqrt((spread + shrunk) / (n * (1 + effective)))
    result: Array = two_sided + np.log(np.maximum(2 * stdtr(n, location / scale), 1e-300))
    return result
