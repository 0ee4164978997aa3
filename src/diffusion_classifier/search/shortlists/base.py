"""Base of all shortlists, which choose the candidates of each image for the full search.

Shape legend: K classes, k candidates.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ...denoisers.base import Average, Conditioning, Denoiser
from ...errors import InputError
from ..jobs import Cost, ImageJob
from ..posterior import mean_errors
from ..scorer import Scorer
from ..settings import ScoringSettings, check_weights
from ..strategies import TIE, Fixed


@dataclass(frozen=True)
class SearchContext:
    """The full search that follows the shortlist.

    Args:
        scorer: the model, ready to score.
        settings: settings of the full search.
        conditioning: encodings of the K classes.
        class_names: K names, as they stand in prompts.
        templates: prompt templates; None if names are prompts themselves, or for a class-conditional model.
        average: what is averaged over several prompts of a class.
    """

    scorer: Scorer
    settings: ScoringSettings
    conditioning: Conditioning
    class_names: tuple[str, ...]
    templates: tuple[str, ...] | None = None
    average: Average = "error"

    @property
    def denoiser(self) -> Denoiser:
        """The model."""
        return self.scorer.denoiser

    def check_draws(self, num_draws: int) -> None:
        """Raise if a shortlist cannot use the first `num_draws` draws.

        Raises:
            InputError: num_draws < 1, or all of these draws have weight 0.
        """
        if num_draws < 1:
            raise InputError(f"at least 1 draw is needed; got {num_draws}")
        check_weights(self.settings, self.denoiser, num_draws)

    def condition(self, denoiser: Denoiser, names: Sequence[str]) -> Conditioning:
        """Return the encodings of names by a denoiser, with the templates of the search."""
        if self.templates is None:
            return denoiser.condition(names)
        return denoiser.condition_by_templates(names, self.templates, self.average)


class Shortlist(Protocol):
    """Narrows down the candidates of images before the search, for any strategy.

    Attributes:
        wants_pictures: whether jobs must hold the picture itself, which takes memory.
    """

    wants_pictures: ClassVar[bool]

    def narrow(self, context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        """Yield the jobs, in any order, with at least two `candidates` and with the shortlist's cost added.

        An image whose predictions fail, for example because they overflow in 16 bits, keeps all its candidates.

        Raises:
            InputError: the shortlist does not suit the classes, the model or the weights.
        """

    def __str__(self) -> str:
        """Return the spelling of the command line."""


def check_keep(keep: int, num_classes: int) -> None:
    """Raise if a shortlist would leave no choice, or all classes.

    Raises:
        InputError: keep < 2, or keep >= num_classes.
    """
    if not 2 <= keep < num_classes:
        raise InputError(
            f"a shortlist of {keep} of {num_classes} classes: it must keep at least 2, and fewer than there are"
        )


def narrowed(job: ImageJob, values: Tensor, keep: int, cost: Cost) -> ImageJob:
    """Keep the `keep` classes of lowest value, ties included. If any value is NaN, keep all.

    Args:
        job: an image.
        values: (K,), infinite for classes that were ruled out before.
        keep: number of classes.
        cost: cost of the values.
    """
    job = replace(job, cost=job.cost + cost, picture=None)
    if bool(values.isnan().any()):
        return job
    last = values.sort().values[keep - 1]
    return replace(job, candidates=(values <= last + TIE * last.abs()).nonzero().squeeze(1))


def by_mean_error(
    context: SearchContext, scorer: Scorer, jobs: Iterable[ImageJob], conditioning: Conditioning, num_draws: int
) -> Iterator[tuple[str, Tensor, Cost]]:
    """Yield (name, mean errors (K,), cost) per image. Errors are inf for non-candidates and NaN for a failed image.

    Args:
        context: the full search, for draws, loss and weights.
        scorer: the model that computes the errors.
        jobs: images.
        conditioning: encodings of K classes.
        num_draws: draws per candidate.
    """
    elsewhere = 0.0

    def timed() -> Iterator[ImageJob]:  # do not count time spent waiting for `jobs`
        nonlocal elsewhere
        source = iter(jobs)
        while True:
            asked = time.perf_counter()
            job = next(source, None)
            elsewhere += time.perf_counter() - asked
            if job is None:
                return
            yield job

    settings = replace(context.settings, strategy=Fixed(num_draws), extra_losses=())
    start = time.perf_counter()
    for scored in scorer.score(timed(), conditioning, settings):
        means = mean_errors(scored.errors, scored.weights).where(scored.active, torch.inf)
        if scored.failure is not None:
            means = torch.full_like(means, torch.nan)
        seconds = time.perf_counter() - start - elsewhere
        yield scored.name, means, replace(scored.cost, seconds=seconds)
        start, elsewhere = time.perf_counter(), 0.0
