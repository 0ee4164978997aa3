"""A strategy of one's own: which classes to evaluate at which draws, seeing errors and never a network."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data.fashion import load_sample
from diffusion_classifier.search.strategies import Request, State


@dataclass(frozen=True)
class Halving:
    """Twice the draws and half the classes each round, until one is left (successive halving).

    It is immutable and keeps what it knows in a `State`, so that one object serves many images at once.
    """

    first_draws: int = 2
    num_rounds: int = 4

    def init(self, num_classes: int) -> State:
        """Nothing evaluated, everyone in."""
        draws = self.first_draws * 2 ** (self.num_rounds - 1)
        return State(torch.full((num_classes, draws), torch.nan), torch.ones(num_classes, dtype=torch.bool))

    def propose(self, state: State) -> Request | None:
        """The classes that are left, at the draws that none of them has seen."""
        if state.stage == self.num_rounds:
            return None
        seen = 0 if state.stage == 0 else self.first_draws * 2 ** (state.stage - 1)
        return Request(state.active.nonzero().flatten(), range(seen, self.first_draws * 2**state.stage))

    def update(self, state: State, errors: Tensor) -> State:
        """Errors (k, n) of what was proposed: the better half stays."""
        request = self.propose(state)
        assert request is not None
        table = state.errors.clone()
        table[request.classes, request.draws.start : request.draws.stop] = errors
        means = state.counted(table[request.classes, : request.draws.stop]).mean(1)
        kept = request.classes[means.argsort()[: max(1, len(means) // 2)]]
        stage = state.stage + 1 if len(kept) > 1 else self.num_rounds
        if stage == self.num_rounds:  # the posterior is over those who saw all of the draws
            kept = request.classes
        active = torch.zeros_like(state.active).index_fill(0, kept, True)
        return replace(state, errors=table, active=active, stage=stage)

    def among(self, num_classes: int) -> "Halving":  # noqa: ARG002 - of the protocol
        """The same where a shortlist left fewer classes."""
        return self

    def __str__(self) -> str:
        """For messages and the specs of runs."""
        return f"halving:{self.first_draws}/{self.num_rounds}"


if __name__ == "__main__":
    classifier = DiffusionClassifier.from_pretrained("fashion", batch_size=32)
    samples = load_sample(8)
    for sample, result in zip(
        samples, classifier.classify([s.image for s in samples], strategy=Halving()), strict=True
    ):
        print(f"{sample.label:12} {result.label:12} {result.score:.2f} {result.num_evaluations} evaluations")
