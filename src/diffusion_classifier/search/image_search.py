"""The search for one image: what its strategy requests, and the errors that came back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .jobs import ImageJob
from .strategies import Request, State, Strategy

Pair = tuple[int, int]
"""A class, as an index into the image's candidates, and a draw."""


@dataclass(eq=False)
class ImageSearch:
    """One image between its first request and its result.

    Args:
        job: the image.
        latent: the encoded image.
        strategy: the strategy of its search.
        state: the strategy's state.
        times: timesteps of all draws of the strategy, (N,).
        num_prompts: predictions per pair.
        extra_losses: tables (k, N) of other losses, to be filled.
    """

    job: ImageJob
    latent: Tensor
    strategy: Strategy
    state: State
    times: Tensor
    num_prompts: int = 1
    extra_losses: dict[str, Tensor] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    num_evaluations: int = 0
    num_latents: int = 0
    failure: str | None = None
    finished: bool = False
    request: Request = field(default_factory=lambda: Request(torch.empty(0, dtype=torch.int64), range(0)))
    errors: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # of the request
    _classes: list[int] = field(default_factory=list)
    _row: dict[int, int] = field(default_factory=dict)
    _num_taken: int = 0
    _num_received: int = 0
    _early: set[Pair] = field(default_factory=set)  # guesses: pairs evaluated before they were requested
    _known: dict[Pair, Sequence[float]] = field(default_factory=dict)  # errors of guesses not requested so far
    _next_guess: int = 0  # a draw

    def proceed(self) -> bool:
        """Start on the strategy's next request. Return False if there is none."""
        while (request := self.strategy.propose(self.state)) is not None:
            self._begin(request)
            if not self.answered:
                return True
            self.state = self.strategy.update(self.state, self.errors)
        return False

    def _begin(self, request: Request) -> None:
        self.request, self._num_taken, self._num_received = request, 0, 0
        self.errors = torch.empty(len(request.classes), len(request.draws))
        self._classes = request.classes.tolist()
        self._row = {c: i for i, c in enumerate(self._classes)}
        self._next_guess = max(self._next_guess, request.draws.stop)
        for pair in [pair for pair in self._known if self.wants(pair)]:
            self.receive(pair, self._known.pop(pair))

    @property
    def answered(self) -> bool:
        """Whether all errors of the request have arrived."""
        return self._num_received == self.errors.numel()

    @property
    def num_waiting(self) -> int:
        """Upper bound of the number of requested pairs that are in no batch so far."""
        return self.errors.numel() - self._num_taken

    def wants(self, pair: Pair) -> bool:
        """Whether the pair is part of the request."""
        return pair[0] in self._row and pair[1] in self.request.draws

    def class_of(self, pair: Pair) -> int:
        """Return the pair's class as an index into all classes."""
        return pair[0] if self.job.candidates is None else int(self.job.candidates[pair[0]])

    def take(self, limit: int) -> list[Pair]:
        """Return the next pairs of the request, draw by draw, so that rows of one noisy latent are adjacent."""
        pairs: list[Pair] = []
        k, draws = len(self._classes), self.request.draws
        while len(pairs) < limit and self._num_taken < self.errors.numel():
            pair = self._classes[self._num_taken % k], draws[self._num_taken // k]
            self._num_taken += 1
            if pair not in self._early:
                pairs.append(pair)
        return pairs

    def guess(self, limit: int) -> list[Pair]:
        """Return pairs that the strategy may request next: the same classes at the following draw."""
        if self._next_guess >= len(self.times):
            return []
        left = [(c, self._next_guess) for c in self._classes if (c, self._next_guess) not in self._early]
        pairs = left[:limit]
        self._early.update(pairs)
        self._next_guess += len(pairs) == len(left)
        return pairs

    def receive(self, pair: Pair, values: Sequence[float]) -> None:
        """Store the errors of a pair, one per loss."""
        if not self.wants(pair):
            self._known[pair] = values
            return
        c, d = pair
        self.errors[self._row[c], d - self.request.draws.start] = values[0]
        for table, other in zip(self.extra_losses.values(), values[1:], strict=True):
            table[c, d] = other
        self._num_received += 1
        self.num_evaluations += self.num_prompts

    def forget(self, pair: Pair) -> None:
        """Forget a guess whose error was not finite, so that it is evaluated again if it is requested."""
        self._early.discard(pair)
