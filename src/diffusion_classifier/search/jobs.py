"""Input and output of the engine for one image.

Shape legend: K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """Cost of one image.

    Args:
        num_evaluations: forward passes, one for each (class, draw).
        full_evaluations: their equivalent in full passes of the main model; fewer where rows share work.
        seconds: from the first forward pass to the last; images in flight together share them.
    """

    num_evaluations: int = 0
    full_evaluations: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.num_evaluations + other.num_evaluations,
            self.full_evaluations + other.full_evaluations,
            self.seconds + other.seconds,
        )


NO_COST = Cost()


@dataclass(frozen=True)
class ImageJob:
    """One image to score.

    Args:
        name: name of the image, for messages.
        image: (3, H, W), float32, in [-1, 1].
        key: 64-bit hash of the image's content. The noise depends on it.
        candidates: (k,), int64: the classes to choose from; all of them if None.
        pad_to_all_classes: keep a row of NaN for every class that is not a candidate.
        cost: cost of the shortlist that found these candidates.
        picture: the image before preprocessing, kept only for a shortlist that needs it.
    """

    name: str
    image: Tensor
    key: int
    candidates: Tensor | None = None
    pad_to_all_classes: bool = True
    cost: Cost = NO_COST
    picture: Image | None = None


@dataclass(frozen=True)
class ScoredImage:
    """The errors of one image, and the state in which its search ended.

    Args:
        name: name of the image.
        errors: error table (K, N), float32, on the CPU, NaN where never evaluated. Rows are the candidates only, in
            their order, unless the job had `pad_to_all_classes`; the same holds for everything with a row per class.
        active: (K,), bool: the classes that were not eliminated.
        t: (N,), the timestep of each draw.
        cost: total cost, the shortlist's included.
        failure: the reason if the image could not be scored; otherwise None.
        doubt: (K,), float64, or None: see `State`.
        undecided: (K,), bool, or None: see `State`.
        weights: (N,), float64, or None: see `State`.
        candidates: the job's candidates. Other classes have no errors, are not active, and have a doubt of 0.
        screening: the part of `cost` that the shortlist took.
        extra_losses: error tables of other losses, by name.
    """

    name: str
    errors: Tensor
    active: Tensor
    t: Tensor
    cost: Cost
    failure: str | None = None
    doubt: Tensor | None = None
    undecided: Tensor | None = None
    weights: Tensor | None = None
    candidates: Tensor | None = None
    screening: Cost = NO_COST
    extra_losses: Mapping[str, Tensor] = field(default_factory=dict)
