"""The paper's strategies: all classes at all draws, or stage by stage with the best few classes kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from .base import TIE, Request, State


@dataclass(frozen=True)
class Staged:
    """The paper's adaptive schedule (Algorithm 2): evaluate the remaining classes, keep the best, repeat.

    Draws are nested: a stage adds the draws that the one before it has not evaluated. All classes are compared on the
    draws that they have in common. A class that ties with the last one kept is kept too, so that the result does not
    depend on the order of classes.

    Args:
        evaluated: draws of each surviving class after each stage, increasing: (25, 250).
        kept: classes that survive each stage, decreasing to 1: (5, 1).

    Raises:
        InputError: the schedule is inconsistent; the message says which value and why.
    """

    usage: ClassVar[str] = "staged:DRAWS/KEPT as in staged:25,250/5,1"
    exhaustive: ClassVar[bool] = False
    evaluated: tuple[int, ...]
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.evaluated or len(self.evaluated) != len(self.kept):
            raise InputError(
                f"{len(self.evaluated)} stages of draws and {len(self.kept)} of classes: give one of each per stage"
            )
        if self.evaluated[0] < 1 or any(b <= a for a, b in zip(self.evaluated, self.evaluated[1:], strict=False)):
            raise InputError(f"draws after each stage must increase from at least 1; got {_join(self.evaluated)}")
        if any(b >= a for a, b in zip(self.kept, self.kept[1:], strict=False)):
            raise InputError(f"classes kept must decrease from stage to stage; got {_join(self.kept)}")
        if self.kept[-1] != 1:
            raise InputError(f"the last stage must keep 1 class, the answer; got {_join(self.kept)}")

    @classmethod
    def parse(cls, argument: str) -> Staged:
        """See `StrategyKind.parse`."""
        evaluated, kept = argument.split("/")
        return cls(_ints(evaluated), _ints(kept))

    @property
    def num_draws(self) -> int:
        """See `Strategy.num_draws`."""
        return self.evaluated[-1]

    def num_evaluations(self, num_classes: int) -> tuple[int, int]:
        """See `Strategy.num_evaluations`."""
        stages = zip((0, *self.evaluated), self.evaluated, (num_classes, *self.kept), strict=False)
        total = sum((after - before) * classes for before, after, classes in stages)
        return total, total

    def among(self, num_classes: int) -> Staged:
        """See `Strategy.among`. Stages that would keep all of so few classes are left out."""
        stages = [(n, k) for n, k in zip(self.evaluated, self.kept, strict=True) if k == 1 or k < num_classes]
        evaluated, kept = zip(*stages, strict=True)
        return Staged(evaluated, kept)

    def init(self, num_classes: int) -> State:
        """See `Strategy.init`.

        Raises:
            InputError: the first stage would evaluate no more classes than it keeps.
        """
        if len(self.kept) > 1 and self.kept[0] >= num_classes:
            raise InputError(
                f"strategy {self} keeps {self.kept[0]} classes after its first stage, but there are only "
                f"{num_classes}: it would evaluate no more than it keeps. Use fixed:N, or keep fewer"
            )
        return State(torch.full((num_classes, self.num_draws), torch.nan), torch.ones(num_classes, dtype=torch.bool))

    def propose(self, state: State) -> Request | None:
        """See `Strategy.propose`."""
        if state.num_done == self.num_draws:
            return None
        return Request(state.active.nonzero().squeeze(1), range(state.num_done, self.evaluated[self._stage(state)]))

    def update(self, state: State, errors: Tensor) -> State:
        """See `Strategy.update`."""
        request = self.propose(state)
        assert request is not None
        table = state.errors.clone()
        table[request.classes, request.draws.start : request.draws.stop] = errors
        active = state.active
        # The last stage decides the label; its classes stay comparable and are not eliminated.
        if request.draws.stop < self.num_draws:
            sums = state.counted(table[:, : request.draws.stop]).sum(1).where(active, torch.inf)
            last_kept = sums.sort().values[self.kept[self._stage(state)] - 1]
            active = sums <= last_kept * (1 + TIE)
        return replace(state, errors=table, active=active, num_done=request.draws.stop)

    def _stage(self, state: State) -> int:
        return bisect_right(self.evaluated, state.num_done)

    def __str__(self) -> str:
        """staged:25,250/5,1."""
        return f"staged:{_join(self.evaluated)}/{_join(self.kept)}"


@dataclass(frozen=True)
class Fixed:
    """Exhaustive search (the paper's Algorithm 1): every class at the same number of draws.

    Raises:
        InputError: fewer than one draw.
    """

    usage: ClassVar[str] = "fixed:DRAWS as in fixed:64"
    exhaustive: ClassVar[bool] = True
    num_draws: int

    def __post_init__(self) -> None:
        if self.num_draws < 1:
            raise InputError(f"at least 1 draw is needed; got {self.num_draws}")

    @classmethod
    def parse(cls, argument: str) -> Fixed:
        """See `StrategyKind.parse`."""
        return cls(int(argument))

    def num_evaluations(self, num_classes: int) -> tuple[int, int]:
        """See `Strategy.num_evaluations`."""
        return self.num_draws * num_classes, self.num_draws * num_classes

    def init(self, num_classes: int) -> State:
        """See `Strategy.init`."""
        return State(torch.full((num_classes, self.num_draws), torch.nan), torch.ones(num_classes, dtype=torch.bool))

    def propose(self, state: State) -> Request | None:
        """See `Strategy.propose`."""
        return None if state.num_done else Request(torch.arange(len(state.active)), range(self.num_draws))

    def update(self, state: State, errors: Tensor) -> State:
        """See `Strategy.update`."""
        return replace(state, errors=errors, num_done=self.num_draws)

    def among(self, num_classes: int) -> Fixed:  # noqa: ARG002 - of the protocol
        """See `Strategy.among`."""
        return self

    def __str__(self) -> str:
        """fixed:64."""
        return f"fixed:{self.num_draws}"


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _join(values: Sequence[int]) -> str:
    return ",".join(map(str, values))
