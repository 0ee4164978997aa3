"""Fine-tuning on classes that a model confuses (paper, section 6.2): what it gains on them, and costs on all.

Shape legend: M images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..classifier import DiffusionClassifier
from ..errors import InputError
from ..metrics import Interval, difference_interval, share_interval
from .images import TrainingCaptions, TrainingImages


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


def indices_of(classes: Sequence[str], data: TrainingImages) -> Tensor:
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
    data: TrainingImages, classes: Sequence[str], captions: Sequence[str], number: int | None, seed: int
) -> TrainingCaptions:
    """Images of these classes for training, whose false captions are those of the others of them.

    Were they those of all other classes, which never are the true one here, the joint objective would learn that they
    never are: `fashion` answered 17 % of all images rightly after that, where it had been 93 %.

    Args:
        data: images of all classes.
        classes: those that are confused.
        captions: of all classes of the data.
        number: so many of the images, drawn at random; all if None.
        seed: of the draw.

    Raises:
        InputError: as `indices_of`; there are not so many images.
    """
    indices = indices_of(classes, data)
    rows = torch.isin(data.labels, indices).nonzero().flatten()
    if number is not None:
        if not 1 <= number <= len(rows):
            raise InputError(
                f"there are {len(rows)} images of {', '.join(classes)} to train on; {number} were asked for"
            )
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:number]]
    labels = data.labels[rows].tolist()
    false = tuple(tuple(captions[i] for i in indices.tolist() if i != label) for label in labels)
    return TrainingCaptions(data.images[rows], tuple(captions[label] for label in labels), false, data.notes)


def right_answers(
    classifier: DiffusionClassifier, held_out: TrainingImages, classes: Sequence[str], template: str | None
) -> dict[str, Tensor]:
    """Whether answers are right, (M,), bool: on images of the confused classes among these, and on all among all."""
    some = images_of(held_out, classes)
    return {", ".join(classes): are_right(classifier, some, classes, template),
            "all classes": are_right(classifier, held_out, held_out.class_names, template)}  # fmt: skip


def images_of(data: TrainingImages, classes: Sequence[str]) -> TrainingImages:
    """Those of these classes.

    Raises:
        InputError: there are none; as `indices_of`.
    """
    rows = torch.isin(data.labels, indices_of(classes, data)).nonzero().flatten()
    if not len(rows):
        raise InputError(f"none of the {len(data)} held-out images is of {', '.join(classes)}: hold out more")
    return data.take(rows)


def are_right(
    classifier: DiffusionClassifier, data: TrainingImages, among: Sequence[str], template: str | None
) -> Tensor:
    """Whether the answers on images (M, ...) among these classes are right, (M,), bool."""
    answers = classifier.classify(
        [image.permute(1, 2, 0).numpy() for image in data.images], list(among), template=template
    )
    truth = [data.class_names[label] for label in data.labels.tolist()]
    pairs = zip(answers, truth, strict=True)
    return torch.tensor([not r.ties and str(r.label).lower() == name.lower() for r, name in pairs])


def gains(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[Gain]:
    """What changed, of what `right_answers` found before and after."""
    return [
        Gain(name, share_interval(a), share_interval(b), difference_interval(b, a), len(a))
        for (name, a), b in zip(before.items(), after.values(), strict=True)
    ]
