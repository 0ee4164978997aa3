"""Fine-tuning on classes that a model confuses (paper, section 6.2): what it gains on them, and costs on all.

Shape legend: M images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..classifier import DiffusionClassifier
from ..exceptions import InputError
from ..metrics import difference_interval, share_interval
from .data import CaptionedImages, LabelledImages

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Gain:
    """Accuracy on held-out images, with 95 % intervals.

    Args:
        name: which images, and among which classes.
        before: of the model as it was.
        after: of the fine-tuned one.
        difference: of the two, image by image (Agresti and Min 2005).
        num_images: M.
    """

    name: str
    before: Interval
    after: Interval
    difference: Interval
    num_images: int


def indices_of(classes: Sequence[str], data: LabelledImages) -> Tensor:
    """Which classes of the data these are.

    Raises:
        InputError: fewer than two, or one that the data do not have.
    """
    known = {name.lower(): i for i, name in enumerate(data.class_names)}
    if strange := [name for name in classes if name.lower() not in known]:
        raise InputError(f"the data have no class {strange[0]!r}: theirs are {', '.join(data.class_names)}")
    if len(set(classes)) < 2:
        raise InputError(f"at least two classes are confused with each other; got {', '.join(classes)}")
    return torch.tensor([known[name.lower()] for name in classes])


def confused_images(
    data: LabelledImages, classes: Sequence[str], captions: Sequence[str], number: int | None, seed: int
) -> CaptionedImages:
    """Images of these classes for training, whose false captions are those of all other classes.

    Args:
        data: images of all classes.
        classes: those that are confused.
        captions: of all classes of the data.
        number: so many of the images, drawn at random; all if None.
        seed: of the draw.

    Raises:
        InputError: as `indices_of`; there are not so many images.
    """
    rows = torch.isin(data.labels, indices_of(classes, data)).nonzero().flatten()
    if number is not None:
        if not 1 <= number <= len(rows):
            raise InputError(
                f"there are {len(rows)} images of {', '.join(classes)} to train on; {number} were asked for"
            )
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:number]]
    labels = data.labels[rows].tolist()
    false = tuple(tuple(c for i, c in enumerate(captions) if i != label) for label in labels)
    return CaptionedImages(data.images[rows], tuple(captions[label] for label in labels), false)


def right_answers(
    classifier: DiffusionClassifier, held_out: LabelledImages, classes: Sequence[str], template: str | None
) -> dict[str, Tensor]:
    """Whether answers are right, (M,), bool: on images of the confused classes among these, and on all among all."""
    some = torch.isin(held_out.labels, indices_of(classes, held_out)).nonzero().flatten()
    if not len(some):
        raise InputError(f"none of the {len(held_out)} held-out images is of {', '.join(classes)}: hold out more")
    asked = {", ".join(classes): (some, list(classes)), "all classes": (torch.arange(len(held_out)), None)}
    found = {}
    for name, (rows, among) in asked.items():
        images = [image.permute(1, 2, 0).numpy() for image in held_out.images[rows]]
        answers = classifier.classify(images, among or list(held_out.class_names), template=template)
        truth = [held_out.class_names[label] for label in held_out.labels[rows].tolist()]
        right = [str(r.label).lower() == name.lower() for r, name in zip(answers, truth, strict=True)]
        found[name] = torch.tensor(right)
    return found


def gains(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[Gain]:
    """What changed, of what `right_answers` found before and after."""
    return [
        Gain(name, share_interval(a), share_interval(b), difference_interval(b, a), len(a))
        for (name, a), b in zip(before.items(), after.values(), strict=True)
    ]
