"""Custom strategy: choose which classes to evaluate at which draws, from errors alone."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from diffusion_classifier import DiffusionClassifier, Request, State
from diffusion_classifier.data import load_sample


@dataclass(frozen=True)
class Halving:
    """Double the draws and halve the classes each round, until one is left (successive halving).

    It is immutable and keeps its progress in a `State`, so that one object serves many images at once.
    """

    usage: ClassVar[str] = "halving:DRAWS/ROUNDS as in halving:2/4"
    exhaustive: ClassVar[bool] = False
    first_draws: int = 2
    num_rounds: int = 4

    @classmethod
    def parse(cls, argument: str) -> "Halving":
        """Read the text after "halving:"; needed only to name the strategy on the command line."""
        first_draws, num_rounds = argument.split("/")
        return cls(int(first_draws), int(num_rounds))

    @property
    def num_draws(self) -> int:
        """Largest number of draws per class."""
        return self.first_draws << (self.num_rounds - 1)

    def num_evaluations(self, num_classes: int) -> tuple[int, int]:
        """Return the smallest and the largest number of evaluations per image."""
        return self.first_draws * num_classes, self.num_draws * num_classes

    def init(self, num_classes: int) -> State:
        """Return the initial state: nothing is evaluated, and no class is ruled out."""
        everyone = torch.ones(num_classes, dtype=torch.bool)
        return State(torch.full((num_classes, self.num_draws), torch.nan), everyone, undecided=everyone)

    def propose(self, state: State) -> Request | None:
        """Request the draws of the next round for the classes that are left."""
        assert state.undecided is not None
        left = state.undecided.nonzero().flatten()
        if len(left) == 1 or state.num_done == self.num_draws:
            return None
        return Request(left, range(state.num_done, max(self.first_draws, 2 * state.num_done)))

    def update(self, state: State, errors: Tensor) -> State:
        """Store the errors (k, n) of the request, and keep the better half of its classes."""
        request = self.propose(state)
        assert request is not None
        classes, num_done = request.classes, request.draws.stop
        table = state.errors.clone()
        table[classes, request.draws.start : num_done] = errors
        order = state.counted(table[classes, :num_done]).mean(1).argsort()
        kept = classes[order[: max(1, len(classes) // 2)]]
        nobody = torch.zeros_like(state.active)
        return replace(
            state,
            errors=table,
            active=nobody.index_fill(0, classes, True),  # the posterior covers those with all draws so far
            undecided=nobody.index_fill(0, kept, True),
            num_done=num_done,
        )

    def among(self, num_classes: int) -> "Halving":  # noqa: ARG002 - part of the protocol
        """Return the same search for an image whose shortlist left fewer classes."""
        return self

    def __str__(self) -> str:
        """Return the spelling used in messages and run specs."""
        return f"halving:{self.first_draws}/{self.num_rounds}"


if __name__ == "__main__":
    classifier = DiffusionClassifier.from_pretrained("fashion", batch_size=32)
    samples = load_sample(8)
    for sample, result in zip(
        samples, classifier.classify([s.image for s in samples], strategy=Halving()), strict=True
    ):
        print(f"{sample.label:12} {result.label:12} {result.score:.2f} {result.num_evaluations} evaluations")
