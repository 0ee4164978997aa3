"""How well captions fit images: the counterpart of a CLIP score for a diffusion model.

Shape legend: C captions of an image, N draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

from .classification import Classification, decide
from .jobs import ScoredImage
from .posterior import mean_errors, paired_differences


@dataclass(frozen=True)
class CaptionScore:
    """How well one caption fits one image.

    Args:
        image: name of the image.
        caption: the text, or the name of a class.
        score: an estimate in nats, divided by the model's temperature. With the null condition, of log p(x|c) - log
            p(x): how much the caption helps to explain the image, 0 meaning not at all. It can be compared between
            images. Without the null condition, of log p(x|c) up to a constant of the image: it can be compared between
            captions of one image only.
        standard_error: with the null condition, the standard error of the score. Without it, the standard error of the
            difference from the image's best caption; 0 for the best. It is an upper estimate, because draws are spread
            more evenly than at random. NaN for fewer than two draws, or if there is nothing to compare.
        error: mean error.
        unconditional_error: mean error of the null condition, if that was evaluated.
        num_evaluations: network predictions for the image, shared by all its captions.
        failure: the reason if there is no score, which then is NaN; otherwise None.
    """

    image: str
    caption: str
    score: float
    standard_error: float
    error: float
    unconditional_error: float | None
    num_evaluations: int
    failure: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as the command line prints them; {"image", "caption", "error"} for a failure."""
        row: dict[str, Any] = {"image": self.image, "caption": self.caption}
        if self.failure is not None:
            return row | {"error": self.failure}
        row["score"] = self.score
        row["standard_error"] = None if isnan(self.standard_error) else self.standard_error
        row["mean_error"] = self.error
        if self.unconditional_error is not None:
            row["unconditional_error"] = self.unconditional_error
        return row | {"num_evaluations": self.num_evaluations}


def caption_scores(
    scored: ScoredImage, captions: Sequence[str], against_null: bool, scale: float
) -> Iterator[CaptionScore]:
    """Yield the scores of an image's captions.

    Args:
        scored: errors of the image: a row for each of its captions, and possibly a last row for the null condition.
        captions: C different captions.
        against_null: whether there is a row for the null condition.
        scale: nats per unit of mean error; see `posterior.scale_of`.
    """
    means = mean_errors(scored.errors, scored.weights)
    reference = len(captions) if against_null else int(means.argmin())
    _, standard_errors = paired_differences(scored.errors, reference, scored.weights)
    unconditional = float(means[reference]) if against_null else None
    for c, caption in enumerate(captions):
        error = float(means[c])
        yield CaptionScore(
            image=scored.name,
            caption=caption,
            score=scale * ((unconditional or 0.0) - error),
            standard_error=scale * float(standard_errors[c]) if against_null or len(captions) > 1 else float("nan"),
            error=error,
            unconditional_error=unconditional,
            num_evaluations=scored.cost.num_evaluations,
            failure=scored.failure,
        )


def choose_caption(
    scored: ScoredImage, captions: Sequence[str], against_null: bool, notes: Sequence[str], **settings: Any
) -> Classification:
    """Return which of an image's captions explains it best.

    Args:
        scored: as in `caption_scores`.
        captions: as in `caption_scores`.
        against_null: as in `caption_scores`.
        notes: as in `classification.decide`.
        **settings: other arguments of `classification.decide`.
    """
    if against_null:  # the null condition is no candidate
        rows = slice(len(captions))
        others = {loss: table[rows] for loss, table in scored.extra_losses.items()}
        scored = replace(scored, errors=scored.errors[rows], active=scored.active[rows], extra_losses=others)
    return decide(replace(scored, candidates=None), captions, notes=notes, **settings)
