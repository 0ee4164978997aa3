"""Strategies decide which (class, draw) pairs to evaluate next, and when to stop. They see errors, never a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

TIE = 1e-6
"""Mean errors that differ by less than this share count as equal: float32 does not tell them apart."""


@dataclass(frozen=True)
class Request:
    """Evaluate each of these classes at each of these draws.

    Args:
        classes: (k,), int64.
        draws: indices of the next draws, which all classes of the request share.
    """

    classes: Tensor
    draws: range


@dataclass(frozen=True)
class State:
    """What a strategy knows of one image.

    Args:
        errors: error table (K, N), float32, NaN where never evaluated. Every active class has all draws so far.
        active: (K,), bool: the classes still compared; at the end those that the posterior is over.
        stage: stages done.
        doubt: (K,), float64: for each class a bound of the chance that the class which all draws together would choose
            does as badly as this one did; None where the strategy makes no such promise.
        undecided: (K,), bool: the classes that are not ruled out; None where the strategy does not ask.
        weights: (N,), float64, at least 0: what an error at each draw counts; all the same if None.
    """

    errors: Tensor
    active: Tensor
    stage: int = 0
    doubt: Tensor | None = None
    undecided: Tensor | None = None
    weights: Tensor | None = None

    def counted(self, errors: Tensor) -> Tensor:
        """Errors (…, n), of the first n draws, as they count: float64, times the draws' weights."""
        errors = errors.double()
        return errors if self.weights is None else errors * self.weights[: errors.shape[-1]]


class Strategy(Protocol):
    """One search over classes; immutable, so that it serves many images at once."""

    def init(self, num_classes: int) -> State:
        """The state before the first evaluation."""

    def propose(self, state: State) -> Request | None:
        """What to evaluate next; None when done."""

    def update(self, state: State, errors: Tensor) -> State:
        """The state after the request that `propose` makes of `state`; errors (k, n), float32."""

    def among(self, num_classes: int) -> Strategy:
        """The same search where some classes are out beforehand and so many are left."""

    def __str__(self) -> str:
        """As the command line spells it; `parse` reads it back."""


def replay(strategy: Strategy, table: Tensor, weights: Tensor | None = None) -> State:
    """The last state of a search through a full error table (K, N), without the network; weights (N,) as in `State`."""
    state = strategy.init(len(table))
    state = state if weights is None else replace(state, weights=weights[: state.errors.shape[1]])
    while (request := strategy.propose(state)) is not None:
        state = strategy.update(state, table[request.classes, request.draws.start : request.draws.stop])
    return state
