"""Strategies decide which (class, draw) pairs to evaluate next, and when to stop. They see errors, never a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

TIE = 1e-6
"""Mean errors that differ by less than this share count as equal, because float32 does not tell them apart."""


@dataclass(frozen=True)
class Request:
    """Evaluate each of these classes at each of these draws.

    Args:
        classes: (k,), int64.
        draws: indices of the next draws, shared by all classes of the request.
    """

    classes: Tensor
    draws: range


@dataclass(frozen=True)
class State:
    """State of the search for one image.

    Args:
        errors: error table (K, N), float32, NaN where never evaluated. Every active class has the first `num_done`
            draws.
        active: (K,), bool: the classes still compared; at the end, those that the posterior covers.
        num_done: number of draws that every active class has.
        doubt: (K,), float64: for each class, an upper bound of the probability that the class with the lowest error
            over all draws does as badly as this one did; None for strategies that give no such guarantee.
        undecided: (K,), bool: the classes that are not ruled out; None for strategies that do not test it.
        weights: (N,), float64, at least 0: the weight of the error at each draw; all equal if None.
    """

    errors: Tensor
    active: Tensor
    num_done: int = 0
    doubt: Tensor | None = None
    undecided: Tensor | None = None
    weights: Tensor | None = None

    def counted(self, errors: Tensor) -> Tensor:
        """Return the errors (…, n) of the first n draws times the draws' weights, float64."""
        errors = errors.double()
        return errors if self.weights is None else errors * self.weights[: errors.shape[-1]]


class Strategy(Protocol):
    """A search over classes. It is immutable, so that one object serves many images at once."""

    @property
    def num_draws(self) -> int:
        """N, the largest number of draws that a class may need."""

    @property
    def exhaustive(self) -> bool:
        """Whether every class gets every draw, whatever the errors are."""

    def num_evaluations(self, num_classes: int) -> tuple[int, int]:
        """Return lower and upper bounds of the evaluations per image. Equal bounds state the number, ties aside."""

    def init(self, num_classes: int) -> State:
        """Return the state before the first evaluation."""

    def propose(self, state: State) -> Request | None:
        """Return what to evaluate next, or None when the search is done."""

    def update(self, state: State, errors: Tensor) -> State:
        """Return the state after the request that `propose` makes for `state`; errors are (k, n), float32."""

    def among(self, num_classes: int) -> Strategy:
        """Return the same search for an image whose shortlist left this many classes."""

    def __str__(self) -> str:
        """Return the spelling of the command line. `parse_strategy` reads it back."""


class StrategyKind(Protocol):
    """A class of strategies that the command line can name, as "kind:argument"; see `STRATEGIES`.

    Attributes:
        usage: spelling and example, such as "fixed:DRAWS as in fixed:64".
    """

    usage: str

    def parse(self, argument: str) -> Strategy:
        """Return a strategy from the text after the colon. This is a class method.

        Raises:
            ValueError: the text has another form. `InputError`: a value is out of range.
        """


def replay(strategy: Strategy, table: Tensor, weights: Tensor | None = None) -> State:
    """Return the last state of a search through a full error table (K, N), without the network.

    Args:
        strategy: the search.
        table: errors.
        weights: (N,), as in `State`.
    """
    state = strategy.init(len(table))
    state = state if weights is None else replace(state, weights=weights[: strategy.num_draws])
    while (request := strategy.propose(state)) is not None:
        state = strategy.update(state, table[request.classes, request.draws.start : request.draws.stop])
    return state
