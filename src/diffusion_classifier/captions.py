"""How well captions fit images: what a CLIP score is asked for, from a diffusion model.

Shape legend: C captions of an image, N draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from .jobs import Scored
from .posterior import mean_errors, paired_differences


@dataclass(frozen=True)
class CaptionScore:
    """How well one caption fits one image.

    Args:
        image: its name.
        caption: the text, or the name of a class.
        score: an estimate in nats over the model's temperature. Against the null condition of log p(x|c) - log p(x),
            which says how much the caption helps to explain the image, 0 being not at all, and can be compared
            between images. Else of log p(x|c) up to what does not depend on the caption, which can be compared
            between captions of one image alone.
        standard_error: of the score, from draws that are common to both: against the null condition; else of its
            difference from the score of the image's best caption, for which it is 0. Draws are spread more evenly than
            by chance: it is an upper estimate. NaN from fewer than two draws, or where there is nothing to compare.
        error: mean error.
        unconditional_error: that of the null condition, where it was asked for.
        num_evaluations: network predictions spent on the image, shared by all its captions.
        failure: why there is no score, which then is NaN; None if there is one.
    """

    image: str
    caption: str
    score: float
    standard_error: float
    error: float
    unconditional_error: float | None
    num_evaluations: int
    failure: str | None = None


def caption_scores(
    scored: Scored, captions: Sequence[str], chosen: Tensor, null: int | None, scale: float
) -> Iterator[CaptionScore]:
    """Scores of an image's captions.

    Args:
        scored: what was found out about the image.
        captions: those of all images.
        chosen: indices of the image's own, (C,).
        null: index of the null condition, where it was evaluated.
        scale: what a difference of mean errors is worth in nats.
    """
    means = mean_errors(scored.errors, scored.weights)
    reference = null if null is not None else int(chosen[means[chosen].argmin()])
    _, standard_errors = paired_differences(scored.errors, reference, scored.weights)
    unconditional = None if null is None else float(means[null])
    for c in chosen.tolist():
        error = float(means[c])
        yield CaptionScore(
            image=scored.name,
            caption=captions[c],
            score=scale * ((unconditional or 0.0) - error),
            standard_error=scale * float(standard_errors[c]) if null is not None or len(chosen) > 1 else float("nan"),
            error=error,
            unconditional_error=unconditional,
            num_evaluations=scored.spent.num_evaluations,
            failure=scored.failure,
        )
