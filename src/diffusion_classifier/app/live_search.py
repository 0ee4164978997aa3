"""Watch the search for one image: the prediction after each step of the strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import nan
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from torch import Tensor

from ..classifier import DiffusionClassifier
from ..data.images import ImageSource, load_image
from ..search.candidates import Classes, Template
from ..search.classification import Classification, decide
from ..search.jobs import Cost, ScoredImage
from ..search.strategies import Request, State, Strategy


class _Left(Exception):
    """The search is no longer watched."""


@dataclass(frozen=True)
class _Watched:
    """A strategy that reports each of its states."""

    strategy: Strategy
    tell: Callable[[State], None]

    @property
    def num_draws(self) -> int:
        return self.strategy.num_draws

    @property
    def exhaustive(self) -> bool:
        return self.strategy.exhaustive

    def num_evaluations(self, num_classes: int) -> tuple[int, int]:
        return self.strategy.num_evaluations(num_classes)

    def init(self, num_classes: int) -> State:
        return self.strategy.init(num_classes)

    def propose(self, state: State) -> Request | None:
        return self.strategy.propose(state)

    def update(self, state: State, errors: Tensor) -> State:
        state = self.strategy.update(state, errors)
        self.tell(state)
        return state

    def among(self, num_classes: int) -> Strategy:
        return _Watched(self.strategy.among(num_classes), self.tell)

    def __str__(self) -> str:
        return str(self.strategy)


def watch(
    classifier: DiffusionClassifier,
    image: ImageSource,
    classnames: Classes | None = None,
    *,
    template: Template = None,
    turn: AbstractContextManager[Any] | None = None,
    **options: Any,
) -> Iterator[Classification]:
    """Classify one image, and yield the prediction after each step of the strategy; the last one is final.

    Before the end, the cost is unknown, and `num_evaluations` counts the evaluations behind the prediction. When the
    iterator is closed, the search ends after the current step.

    Args:
        classifier: any classifier.
        image: the image.
        classnames: see `DiffusionClassifier.stream`.
        template: see `DiffusionClassifier.stream`.
        turn: lock held while the network is in use, if it is shared.
        **options: strategy, timesteps, loss, weights, seed, reduction, temperature and prior; see
            `DiffusionClassifier.stream`.

    Raises:
        InputError: as in `DiffusionClassifier.stream`, or the image cannot be used, or a prediction is not finite.
    """
    with turn or nullcontext():
        names, conditioning = classifier.scorer.candidates.named(classnames, template)
    reading = classifier.settings_for(names, **options)
    picture = load_image(image)
    t = reading.draws.times(classifier.denoiser.schedule, range(reading.strategy.num_draws), picture.key)
    started = time.perf_counter()
    states: SimpleQueue[State | None] = SimpleQueue()
    left = Event()

    def tell(state: State) -> None:
        if left.is_set():
            raise _Left
        states.put(state)

    def so_far(state: State) -> Classification:
        evaluations = int((~state.errors.isnan()).sum()) * conditioning.num_prompts
        scored = ScoredImage(
            name=picture.name,
            errors=state.errors,
            active=state.active,
            t=t,
            cost=Cost(evaluations, nan, time.perf_counter() - started),
            doubt=state.doubt,
            undecided=state.undecided,
            weights=state.weights,
        )
        return decide(scored, names, num_dimensions=classifier.scorer.num_dimensions, **reading.posterior_settings())

    def search() -> Classification:
        with turn or nullcontext():
            watched = _Watched(reading.strategy, tell)
            asked = options | {"strategy": watched, "template": template}
            return classifier.classify([picture.image], classnames, **asked)[0]

    answer: Future[Classification] = Future()

    def work() -> None:
        try:
            answer.set_result(search())
        except BaseException as e:
            answer.set_exception(e)
        states.put(None)

    Thread(target=work, name="search", daemon=True).start()  # the process does not wait for it at exit
    try:
        while (state := states.get()) is not None:
            yield so_far(state)
    finally:
        left.set()
    yield answer.result()
