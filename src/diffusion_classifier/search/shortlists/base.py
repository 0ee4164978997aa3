"""What all shortlists share: they take images and give each the candidates that are worth the full search.

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
from ...diffusion.draws import Draws
from ...diffusion.timestep_weights import Weights
from ...errors import InputError
from ..engine import check_weights, score
from ..jobs import Cost, ImageJob
from ..posterior import mean_errors
from ..strategies import TIE, Fixed


@dataclass(frozen=True)
class SearchContext:
    """What the full search will be.

    Args:
        denoiser: the model.
        class_names: K, as they stand in prompts.
        templates: what makes a name a prompt; None where names are prompts, or the model reads no text.
        average: over what several prompts of a class are averaged.
        conditioning: K rows.
        draws: (t, ε) pairs.
        loss: of an error.
        weights: over time.
        batch_size: rows of one network call.
    """

    denoiser: Denoiser
    class_names: tuple[str, ...]
    templates: tuple[str, ...] | None
    average: Average
    conditioning: Conditioning
    draws: Draws
    loss: str
    weights: Weights | None
    batch_size: int

    def check_draws(self, num_draws: int) -> None:
        """Complain of fewer draws than one, or of none that counts.

        Raises:
            InputError: so it is.
        """
        if num_draws < 1:
            raise InputError(f"at least 1 draw is needed; got {num_draws}")
        check_weights(self.weights, self.draws, self.denoiser.schedule, num_draws)

    def condition(self, denoiser: Denoiser, names: Sequence[str]) -> Conditioning:
        """Rows of another denoiser, or for other names than those of the classes."""
        if self.templates is None:
            return denoiser.condition(names)
        return denoiser.condition_by_templates(names, self.templates, self.average)


class Shortlist(Protocol):
    """Narrows down the candidates of images, whatever strategy chooses among them afterwards.

    Attributes:
        wants_pictures: whether jobs must hold the picture itself, which takes memory.
    """

    wants_pictures: ClassVar[bool]

    def narrow(self, context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        """The jobs with `candidates`, two at least, and with what that took added to `spent`; in any order.

        An image whose predictions failed on the way, as in a dtype that they overflow in, keeps all its candidates.

        Raises:
            InputError: the shortlist does not suit the classes, the model or the weights.
        """

    def __str__(self) -> str:
        """As the command line spells it."""


def check_keep(keep: int, num_classes: int) -> None:
    """Complain of a number of classes to keep that leaves no choice, or all of them.

    Raises:
        InputError: fewer than two, or not fewer than there are.
    """
    if not 2 <= keep < num_classes:
        raise InputError(
            f"a shortlist of {keep} of {num_classes} classes: it must keep at least 2, and fewer than there are"
        )


def narrowed(job: ImageJob, values: Tensor, keep: int, spent: Cost) -> ImageJob:
    """The job with the candidates of least value. One that ties with the last is kept too; all are, if one is NaN.

    Args:
        job: an image.
        values: (K,), infinite for classes that were out before.
        keep: classes.
        spent: on finding the values.
    """
    job = replace(job, spent=job.spent + spent, picture=None)
    if bool(values.isnan().any()):
        return job
    last = values.sort().values[keep - 1]
    return replace(job, candidates=(values <= last + TIE * last.abs()).nonzero().squeeze(1))


def by_mean_error(
    context: SearchContext, denoiser: Denoiser, jobs: Iterable[ImageJob], conditioning: Conditioning, num_draws: int
) -> Iterator[tuple[str, Tensor, Cost]]:
    """Of each image its name, mean errors (K,) and what they took; infinite for no candidates, NaN if it failed.

    Args:
        context: for draws, loss, weights and batch size.
        denoiser: which may be another.
        jobs: images.
        conditioning: K rows.
        num_draws: of every candidate.
    """
    elsewhere = 0.0

    def timed() -> Iterator[ImageJob]:  # what comes before is not this one's time
        nonlocal elsewhere
        source = iter(jobs)
        while True:
            asked = time.perf_counter()
            job = next(source, None)
            elsewhere += time.perf_counter() - asked
            if job is None:
                return
            yield job

    start = time.perf_counter()
    for scored in score(
        denoiser,
        timed(),
        conditioning,
        Fixed(num_draws),
        draws=context.draws,
        loss=context.loss,
        weights=context.weights,
        batch_size=context.batch_size,
    ):
        means = mean_errors(scored.errors, scored.weights).where(scored.active, torch.inf)
        if scored.failure is not None:
            means = torch.full_like(means, torch.nan)
        seconds = time.perf_counter() - start - elsewhere
        yield scored.name, means, Cost(scored.spent.num_evaluations, scored.spent.cost, seconds)
        start, elsewhere = time.perf_counter(), 0.0
