"""Sequential elimination: draw by draw, drop every class that is statistically behind the leader.

The guarantee: with probability 1 - error_rate or more, the class with the lowest mean error over all N draws is not
dropped. It rests on one of two tests.

*Calibrated.* On calibration images, it was measured how far the final winner was ever behind the leader (its largest
lag). If the final winner of a new image is dropped, its lag exceeds all but a share error_rate of the calibration lags.
That happens on at most that share of images, whatever the distribution of errors (split conformal prediction; Vovk,
Gammerman and Shafer 2005, "Algorithmic learning in a random world"). The guarantee is an average over images. Lags are
differences of summed errors, not of means, as in Wald's test (1945, "Sequential tests of statistical hypotheses"). For
sums, the best threshold does not depend on the number of draws so far if the variance of a difference between classes
is proportional to its mean. That holds for a good model, whose difference of squared errors is ‖Δ‖² plus a multiple of
Δ, the difference of predictions.

*Not calibrated.* An e-process reaches 1/error_rate with probability at most error_rate (Ville 1939), for every single
image. For each pair of classes it is the likelihood ratio of Student's t under a positive effect, drawn from half a
standard normal distribution, and under no effect (Lai 1976, "On confidence sequences"; Wang and Ramdas 2024,
"Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance"). For a class it is the mean
over its rivals. It assumes that differences between classes are normal and identically distributed over draws;
simulations show that it holds far beyond that. It is conservative and needs several times the evaluations.

Shape legend: K classes, N draws, k classes still compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

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
    """Drop every class that is statistically behind, until one is left or the draws are used up; see the module.

    The classes that the last round compared stay comparable: the posterior covers them.

    Args:
        num_draws: N, after which the leader wins.
        error_rate: accepted probability of dropping the class that would lead after N draws.
        lags: largest lags of the class that led after N draws, on calibration images, ascending; see `largest_lag`.
            If None, the test that needs no calibration is used.

    Raises:
        InputError: fewer than one draw, an error rate outside (0, 1) or too small for so few lags, lags out of order.
    """

    usage: ClassVar[str] = "sequential:DRAWS/ERROR_RATE as in sequential:250/0.01"
    exhaustive: ClassVar[bool] = False
    num_draws: int
    error_rate: float = 0.01
    lags: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_draws < 1:
            raise InputError(f"at least 1 draw is needed; got {self.num_draws}")
        if not 0 < self.error_rate < 1:
            raise InputError(f"the error rate must lie between 0 and 1; got {self.error_rate:g}")
        if self.lags is not None and not (np.isfinite(self.lags).all() and (np.diff(self.lags) >= 0).all()):
            raise InputError("the lags of a calibration must be finite and ascending")
        if self.lags is not None and self.error_rate * (len(self.lags) + 1) < 1:
            raise InputError(
                f"an error rate of {self.error_rate:g} needs a calibration on at least {1 / self.error_rate - 1:.0f} "
                f"images; this one has {len(self.lags)}"
            )

    @classmethod
    def parse(cls, argument: str) -> Sequential:
        """See `StrategyKind.parse`. The error rate may be left out."""
        draws, slash, error_rate = argument.partition("/")
        return cls(int(draws), float(error_rate)) if slash else cls(int(draws))

    def num_evaluations(self, num_classes: int) -> tuple[int, int]:
        """See `Strategy.num_evaluations`."""
        return num_classes, self.num_draws * num_classes

    def init(self, num_classes: int) -> State:
        """See `Strategy.init`."""
        everyone = torch.ones(num_classes, dtype=torch.bool)
        errors = torch.full((num_classes, self.num_draws), torch.nan)
        return State(errors, everyone, doubt=everyone.double(), undecided=everyone)

    def propose(self, state: State) -> Request | None:
        """See `Strategy.propose`. A round has one draw at first, later a sixteenth of the draws so far."""
        assert state.undecided is not None
        left = state.undecided.nonzero().squeeze(1)
        if len(left) == 1 or state.num_done == self.num_draws:
            return None
        round_size = 1 + state.num_done // 16
        return Request(left, range(state.num_done, min(state.num_done + round_size, self.num_draws)))

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
        if n == self.num_draws:  # all draws are evaluated: the difference is known
            doubt[left] = (sums <= sums.min() * (1 + TIE)).double()
        active = torch.zeros_like(state.active)
        active[left] = True
        return replace(state, errors=table, active=active, num_done=n, doubt=doubt, undecided=undecided)

    def _doubt(self, state: State, left: Tensor, n: int, sums: Tensor) -> Tensor:
        """Return `State.doubt` (k,) after n draws, given the sums (k,) of weighted errors."""
        if self.lags is not None:
            as_far = len(self.lags) - torch.searchsorted(self._sorted_lags, sums - sums.min())
            return (1 + as_far).double() / (1 + len(self.lags))
        counted, num_draws = state.counted(state.errors[:, :n]), self.num_draws
        if state.weights is not None:  # draws of weight 0 do not count
            counted, num_draws = counted[:, state.weights[:n] > 0], int((state.weights > 0).sum())
        if not counted.shape[1]:
            return torch.ones(len(left), dtype=torch.float64)
        evidence = mean_e_values(counted.numpy(), left.numpy(), num_draws)
        return torch.from_numpy(1 / np.maximum(evidence, 1))

    def among(self, num_classes: int) -> Sequential:  # noqa: ARG002 - of the protocol
        """See `Strategy.among`. The lags stay valid if the class that wins among all classes is still a candidate: it
        wins among fewer, and its lag is no larger. If it is not, there is no guarantee.
        """
        return self

    @cached_property
    def _sorted_lags(self) -> Tensor:
        return torch.tensor(self.lags, dtype=torch.float64)

    def __str__(self) -> str:
        """sequential:250/0.01."""
        return f"sequential:{self.num_draws}/{self.error_rate:g}"


def largest_lag(errors: Tensor) -> float:
    """Return how far the class that leads after all draws ever was behind the leader.

    Args:
        errors: full error table (K, N).

    Returns:
        The largest difference of sums of errors over the first n draws, n from 1 to N; at least 0.
    """
    sums = errors.double().cumsum(1)
    return float((sums[sums[:, -1].argmin()] - sums.amin(0)).max())


def mean_e_values(table: Array, left: NDArray[np.int64], num_draws: int) -> Array:
    """Return the evidence (k,) that each remaining class does not win after all draws: the mean over its rivals.

    A rival that was dropped is compared on the draws that it has.

    Args:
        table: (K, n), NaN where never evaluated; every class has its first draws.
        left: (k,), the classes that have all n draws.
        num_draws: N. The mean over the first n draws differs less from the mean over all N than from the expectation:
            the difference is a Brownian bridge, which is a Brownian motion in the time n / (1 - n/N). With n = N, the
            evidence concerns the expectation.
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
    """Return the log of the one-sided e-value for a positive mean difference, of any shape.

    Args:
        mean: mean of n differences.
        spread: sum of their squared deviations from the mean, above 0.
        n: number of differences.
        effective: number of independent differences that carry the same information about the mean.
    """
    q = effective * mean**2
    shrunk = q / (1 + effective)  # the part of q that an effect from the standard normal does not explain
    two_sided = 0.5 * (n * (np.log1p(q / spread) - np.log1p(shrunk / spread)) - np.log1p(effective))
    # The posterior of the effect is Student's t with n degrees of freedom: take twice its part above 0.
    location = effective * mean / (1 + effective)
    scale = np.sqrt((spread + shrunk) / (n * (1 + effective)))
    result: Array = two_sided + np.log(np.maximum(2 * stdtr(n, location / scale), 1e-300))
    return result
