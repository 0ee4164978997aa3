"""Measure fine-tuning on classes that a model confuses (paper, section 6.2), on these classes and on all.

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
    """Accuracy on held-out images, with 95% intervals.

    Args:
        name: classes of the images, which are also the candidates.
        before: accuracy of the model before fine-tuning.
        after: accuracy of the fine-tuned model.
        difference: difference of the two, paired by image (Agresti and Min 2005).
        num_images: M.
    """

    name: str
    before: Interval
    after: Interval
    difference: Interval
    num_images: int


def indices_of(classes: Sequence[str], data: TrainingImages) -> Tensor:
    """Return the indices of classes in the data.

    Raises:
        InputError: fewer than two classes, or one that the data do not have.
    """
    known = {name.lower(): i for i, name in enumerate(data.class_names)}
    if strange := [name for name in classes if name.lower() not in known]:
        raise InputError(f"the data have no class {strange[0]!r}: theirs are {', '.join(data.class_names)}")
    if len(set(classes)) < 2:
        raise InputError(f"at least two classes are confused with each other; got {', '.join(classes)}")
    return torch.tensor([known[name.lower()] for name in classes])


def confusable_images(
    data: TrainingImages, classes: Sequence[str], captions: Sequence[str], number: int | None, seed: int
) -> TrainingCaptions:
    """Return training images of these classes, whose false captions are those of the other classes among these.

    False captions of all classes would make the joint objective learn that the classes without images are never true:
    the accuracy of `fashion` on all classes fell from 93% to 17%.

    Args:
        data: images of all classes.
        classes: classes that the model confuses.
        captions: captions of all classes of the data.
        number: number of images, drawn at random. Default: all.
        seed: seed of the draw.

    Raises:
        InputError: as `indices_of`; there are fewer images than `number`.
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


def correct_by_scope(
    classifier: DiffusionClassifier, held_out: TrainingImages, classes: Sequence[str], template: str | None
) -> dict[str, Tensor]:
    """Return correctness (M,), bool, twice: on the images and among the names of these classes, and of all classes."""
    some = images_of_classes(held_out, classes)
    return {", ".join(classes): correctness(classifier, some, classes, template),
            "all classes": correctness(classifier, held_out, held_out.class_names, template)}  # fmt: skip


def images_of_classes(data: TrainingImages, classes: Sequence[str]) -> TrainingImages:
    """Return the images of these classes.

    Raises:
        InputError: there are none; as `indices_of`.
    """
    rows = torch.isin(data.labels, indices_of(classes, data)).nonzero().flatten()
    if not len(rows):
        raise InputError(f"none of the {len(data)} held-out images is of {', '.join(classes)}: hold out more")
    return data.take(rows)


def correctness(
    classifier: DiffusionClassifier, data: TrainingImages, among: Sequence[str], template: str | None
) -> Tensor:
    """Return which images (M,), bool, are classified correctly among these classes."""
    answers = classifier.classify(
        [image.permute(1, 2, 0).numpy() for image in data.images], list(among), template=template
    )
    truth = [data.class_names[label] for label in data.labels.tolist()]
    pairs = zip(answers, truth, strict=True)
    return torch.tensor([not r.ties and str(r.label).lower() == name.lower() for r, name in pairs])


def gains(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[Gain]:
    """Compare the results of `correct_by_scope` before and after fine-tuning."""
    return [
        Gain(name, share_interval(a), share_interval(b), difference_interval(b, a), len(a))
        for (name, a), b in zip(before.items(), after.values(), strict=True)
    ]
