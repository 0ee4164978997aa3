"""What the engine is given for each image, and what it gives back.

Shape legend: K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """What was spent on an image: network predictions, the same in full predictions of the main model, and seconds."""

    num_evaluations: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.num_evaluations + other.num_evaluations, self.cost + other.cost, self.seconds + other.seconds)


NO_COST = Cost()


@dataclass(frozen=True)
class ImageJob:
    """One image to score.

    Args:
        name: of the image, for messages.
        image: (3, H, W), float32, in [-1, 1].
        key: 64-bit hash of the image's content, which its noise depends on.
        candidates: (k,), int64: the classes to choose from; all of them if None.
        whole: whether the others have rows in its tables, too, which then hold nothing.
        spent: on narrowing the candidates down to these.
        picture: what `image` was made from, where a shortlist looks at it.
    """

    name: str
    image: Tensor
    key: int
    candidates: Tensor | None = None
    whole: bool = True
    spent: Cost = NO_COST
    picture: Image | None = None


@dataclass(frozen=True)
class ScoredImage:
    """What was found out about one image.

    Args:
        name: of the image.
        errors: error table (K, N), float32, on the CPU, NaN where never evaluated; of the candidates alone, in their
            order, where the job was not `whole`, and so all else that has a row for each class.
        active: (K,), bool: the classes that were not eliminated.
        t: (N,), the timestep of each draw.
        spent: in all. Work that rows of one noisy latent share makes the cost less than the number of evaluations; the
            seconds go from the first prediction to the last, and images in flight together share them.
        failure: why there is no answer; None if there is one.
        doubt: (K,), float64, or None: see `State`.
        undecided: (K,), bool, or None: see `State`.
        weights: (N,), float64, or None: see `State`.
        candidates: of the job. Any other class has no errors, is not active, and no doubt is left about it.
        screening: the part of `spent` that narrowed the candidates down.
        also: error tables of other losses, by their names.
    """

    name: str
    errors: Tensor
    active: Tensor
    t: Tensor
    spent: Cost
    failure: str | None = None
    doubt: Tensor | None = None
    undecided: Tensor | None = None
    weights: Tensor | None = None
    candidates: Tensor | None = None
    screening: Cost = NO_COST
    also: Mapping[str, Tensor] = field(default_factory=dict)
