"""The published strategies: all classes at all draws, or stage by stage with the best few kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import InputError
from .base import TIE, Request, State


@dataclass(frozen=True)
class Staged:
    """Algorithm 2 of the paper: evaluate the classes that remain, keep the best, go on with those.

    Draws are nested: a stage adds the draws that the one before it has not seen, and all classes are compared on all
    draws that they have in common. A class that ties with the last one kept is kept too, so that the outcome does not
    depend on the order of classes.

    Args:
        evaluated: draws of each surviving class after each stage, increasing: (25, 250).
        kept: classes that survive each stage, decreasing to 1: (5, 1).

    Raises:
        InputError: the schedule does not make sense; the message says which value and why.
    """

    evaluated: tuple[int, ...]
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.evaluated or len(self.evaluated) != len(self.kept):
            raise InputError(
                f"{len(self.evaluated)} stages of draws and {len(self.kept)} of classes: one of each a stage"
            )
        if self.evaluated[0] < 1 or any(b <= a for a, b in zip(self.evaluated, self.evaluated[1:], strict=False)):
            raise InputError(f"draws after each stage must increase from at least 1; got {_join(self.evaluated)}")
        if any(b >= a for a, b in zip(self.kept, self.kept[1:], strict=False)):
            raise InputError(f"classes kept must decrease from stage to stage; got {_join(self.kept)}")
        if self.kept[-1] != 1:
            raise InputError(f"the last stage must keep 1 class, the answer; got {_join(self.kept)}")

    def among(self, num_classes: int) -> Staged:
        """See `Strategy.among`: without the stages that would keep all of so few classes."""
        stages = [(n, k) for n, k in zip(self.evaluated, self.kept, strict=True) if k == 1 or k < num_classes]
        evaluated, kept = zip(*stages, strict=True)
        return Staged(evaluated, kept)

    def init(self, num_classes: int) -> State:
        """See `Strategy.init`.

        Raises:
            InputError: the first stage would evaluate fewer classes than it keeps.
        """
        if len(self.kept) > 1 and self.kept[0] >= num_classes:
            raise InputError(
                f"strategy {self} keeps {self.kept[0]} classes after its first stage, but there are only "
                f"{num_classes}: it would evaluate no more than it keeps. Use fixed:N, or keep fewer"
            )
        return State(
            torch.full((num_classes, self.evaluated[-1]), torch.nan), torch.ones(num_classes, dtype=torch.bool)
        )

    def propose(self, state: State) -> Request | None:
        """See `Strategy.propose`."""
        if state.stage == len(self.evaluated):
            return None
        first = self.evaluated[state.stage - 1] if state.stage else 0
        return Request(state.active.nonzero().squeeze(1), range(first, self.evaluated[state.stage]))

    def update(self, state: State, errors: Tensor) -> State:
        """See `Strategy.update`."""
        request = self.propose(state)
        assert request is not None
        table = state.errors.clone()
        table[request.classes, request.draws.start : request.draws.stop] = errors
        active = state.active
        # The last stage names the answer; the classes in it stay comparable and are not eliminated.
        if state.stage < len(self.evaluated) - 1:
            sums = state.counted(table[:, : request.draws.stop]).sum(1).where(active, torch.inf)
            last_kept = sums.sort().values[self.kept[state.stage] - 1]
            active = sums <= last_kept * (1 + TIE)
        return replace(state, errors=table, active=active, stage=state.stage + 1)

    def __str__(self) -> str:
        """staged:25,250/5,1."""
        return f"staged:{_join(self.evaluated)}/{_join(self.kept)}"


@dataclass(frozen=True)
class Fixed:
    """Algorithm 1 of the paper: every class at the same number of draws.

    Raises:
        InputError: fewer than one draw.
    """

    num_draws: int

    def __post_init__(self) -> None:
        if self.num_draws < 1:
            raise InputError(f"at least 1 draw is needed; got {self.num_draws}")

    def init(self, num_classes: int) -> State:
        """See `Strategy.init`."""
        return State(torch.full((num_classes, self.num_draws), torch.nan), torch.ones(num_classes, dtype=torch.bool))

    def propose(self, state: State) -> Request | None:
        """See `Strategy.propose`."""
        return None if state.stage else Request(torch.arange(len(state.active)), range(self.num_draws))

    def update(self, state: State, errors: Tensor) -> State:
        """See `Strategy.update`."""
        return replace(state, errors=errors, stage=1)

    def among(self, num_classes: int) -> Fixed:  # noqa: ARG002 - of the protocol
        """See `Strategy.among`."""
        return self

    def __str__(self) -> str:
        """fixed:64."""
        return f"fixed:{self.num_draws}"


def _join(values: Sequence[int]) -> str:
    return ",".join(map(str, values))
