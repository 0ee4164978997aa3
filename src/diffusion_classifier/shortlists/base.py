"""What all shortlists share: they take images and give each the candidates that are worth the full search.

Shape legend: K classes, k candidates.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..denoisers.base import Conditioning, Denoiser
from ..draws import Draws
from ..exceptions import InputError
from ..posterior import mean_errors
from ..prompts import fill_template
from ..scoring import Job, Spent, score
from ..strategies import TIE, Fixed
from ..weights import Weights


@dataclass(frozen=True)
class Setting:
    """What the full search will be.

    Args:
        denoiser: the model.
        class_names: K.
        template: what makes a name a prompt; None where names are prompts, or the model reads no text.
        conditioning: K rows.
        draws: (t, ε) pairs.
        loss: of an error.
        weights: over time.
        batch_size: rows of one network call.
    """

    denoiser: Denoiser
    class_names: tuple[str, ...]
    template: str | None
    conditioning: Conditioning
    draws: Draws
    loss: str
    weights: Weights | None
    batch_size: int

    def condition(self, denoiser: Denoiser, names: Sequence[str]) -> Conditioning:
        """Rows of another denoiser, or for other names than those of the classes."""
        return denoiser.condition(names if self.template is None else fill_template(self.template, names))


class Shortlist(Protocol):
    """Narrows down the candidates of images, whatever strategy chooses among them afterwards."""

    def narrow(self, setting: Setting, jobs: Iterator[Job]) -> Iterator[Job]:
        """The jobs with `candidates`, two at least, and with what that took added to `spent`; in any order.

        An image whose predictions failed on the way keeps all its candidates: the search itself will say why.

        Raises:
            InputError: the shortlist does not suit the classes or the model.
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


def narrowed(job: Job, values: Tensor, keep: int, spent: Spent) -> Job:
    """The job with the candidates of least value. One that ties with the last is kept too.

    Args:
        job: an image.
        values: (K,), infinite for classes that were out before.
        keep: classes.
        spent: on finding the values.
    """
    last = values.sort().values[keep - 1]
    kept = (values <= last + TIE * last.abs()).nonzero().squeeze(1)
    return replace(job, candidates=kept, spent=job.spent + spent)


def by_mean_error(
    setting: Setting, denoiser: Denoiser, jobs: Iterable[Job], conditioning: Conditioning, num_draws: int
) -> Iterator[tuple[str, Tensor | None, Spent]]:
    """Of each image its name, mean errors (K,), infinite where it has no candidate, and what they took.

    Args:
        setting: for draws, loss, weights and batch size.
        denoiser: which may be another.
        jobs: images.
        conditioning: K rows.
        num_draws: of every candidate.
    """
    start = time.perf_counter()
    for scored in score(
        denoiser,
        jobs,
        conditioning,
        Fixed(num_draws),
        draws=setting.draws,
        loss=setting.loss,
        weights=setting.weights,
        batch_size=setting.batch_size,
    ):
        means = None
        if scored.failure is None:
            means = mean_errors(scored.errors, scored.weights).where(scored.active, torch.inf)
        now = time.perf_counter()
        yield scored.name, means, Spent(scored.spent.num_evaluations, scored.spent.cost, now - start)
        start = time.perf_counter()
