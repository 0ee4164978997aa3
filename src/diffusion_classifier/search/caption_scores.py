"""How well captions fit images: what a CLIP score is asked for, from a diffusion model.

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

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as the command line gives them; {"image", "caption", "error"} for a failure."""
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
    """Scores of an image's captions.

    Args:
        scored: what was found out about the image: a row for each of its captions, and one for the null condition.
        captions: C different ones.
        against_null: whether there is that row, the last.
        scale: what a difference of mean errors is worth in nats.
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
            num_evaluations=scored.spent.num_evaluations,
            failure=scored.failure,
        )


def choose_caption(
    scored: ScoredImage, captions: Sequence[str], against_null: bool, notes: Sequence[str], **settings: Any
) -> Classification:
    """Which of an image's captions explains it best.

    Args:
        scored: as in `caption_scores`, and so the next two.
        captions: see there.
        against_null: see there.
        notes: as in `posterior.decide`, and so the settings.
        **settings: see there.
    """
    if against_null:  # which is no candidate
        rows = slice(len(captions))
        also = {loss: table[rows] for loss, table in scored.also.items()}
        scored = replace(scored, errors=scored.errors[rows], active=scored.active[rows], also=also)
    return decide(replace(scored, candidates=None), captions, notes=notes, **settings)
