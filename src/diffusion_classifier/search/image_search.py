"""An image on its way through its search: what is asked of the network for it, and what came back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .jobs import ImageJob
from .strategies import Request, State, Strategy

Pair = tuple[int, int]
"""A class, counted among the candidates of the image, and a draw."""


@dataclass(eq=False)
class ImageSearch:
    """One image.

    Args:
        job: the image.
        latent: of it.
        strategy: of its search.
        state: of the search.
        times: of all draws that it may use, (N,).
        num_prompts: predictions for one pair.
        also: tables (k, N) of other losses, to be filled.
    """

    job: ImageJob
    latent: Tensor
    strategy: Strategy
    state: State
    times: Tensor
    num_prompts: int = 1
    also: dict[str, Tensor] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    num_evaluations: int = 0
    num_latents: int = 0
    failure: str | None = None
    landed: bool = False
    _early: set[Pair] = field(default_factory=set)  # asked for before they were wanted
    _known: dict[Pair, Sequence[float]] = field(default_factory=dict)  # of these, what came back and waits
    _guess: int = 0  # the draw to ask for early

    def proceed(self) -> bool:
        """Begin with what the strategy wants next; False where it wants nothing more."""
        while (request := self.strategy.propose(self.state)) is not None:
            self._begin(request)
            if not self.answered:
                return True
            self.state = self.strategy.update(self.state, self.errors)
        return False

    def _begin(self, request: Request) -> None:
        self.request, self._next, self._done = request, 0, 0
        self.errors = torch.empty(len(request.classes), len(request.draws))
        self._classes = request.classes.tolist()
        self._row = {c: i for i, c in enumerate(self._classes)}
        self._guess = max(self._guess, request.draws.stop)
        for pair in [pair for pair in self._known if self.wants(pair)]:
            self.receive(pair, self._known.pop(pair))

    @property
    def answered(self) -> bool:
        """Whether all that the strategy asked for is there."""
        return self._done == self.errors.numel()

    @property
    def num_waiting(self) -> int:
        """Pairs that the network was not asked for yet, at most."""
        return self.errors.numel() - self._next

    def wants(self, pair: Pair) -> bool:
        """Whether the request under way asks for it."""
        return pair[0] in self._row and pair[1] in self.request.draws

    def class_of(self, pair: Pair) -> int:
        """The pair's class, counted among all."""
        return pair[0] if self.job.candidates is None else int(self.job.candidates[pair[0]])

    def take(self, limit: int) -> list[Pair]:
        """The next pairs of the request, draw by draw, so that rows of one noisy latent lie together."""
        pairs: list[Pair] = []
        k, draws = len(self._classes), self.request.draws
        while len(pairs) < limit and self._next < self.errors.numel():
            pair = self._classes[self._next % k], draws[self._next // k]
            self._next += 1
            if pair not in self._early:
                pairs.append(pair)
        return pairs

    def guess(self, limit: int) -> list[Pair]:
        """Pairs that the strategy may want next: the same classes at the draw after those that were asked for."""
        if self._guess >= len(self.times):
            return []
        left = [(c, self._guess) for c in self._classes if (c, self._guess) not in self._early]
        pairs = left[:limit]
        self._early.update(pairs)
        self._guess += len(pairs) == len(left)
        return pairs

    def receive(self, pair: Pair, values: Sequence[float]) -> None:
        """Errors of a pair, of the loss that the strategy sees first."""
        if not self.wants(pair):
            self._known[pair] = values
            return
        c, d = pair
        self.errors[self._row[c], d - self.request.draws.start] = values[0]
        for table, other in zip(self.also.values(), values[1:], strict=True):
            table[c, d] = other
        self._done += 1
        self.num_evaluations += self.num_prompts

    def forget(self, pair: Pair) -> None:
        """A guess of which nothing came back."""
        self._early.discard(pair)
