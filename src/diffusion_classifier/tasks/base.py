"""What a benchmark is: images, class names, a prompt, the paper's settings, and how it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..data.captioned import CaptionedSource
from ..data.labelled import LabelledSource

Metric = Literal["accuracy", "mean_per_class"]
_IN_THE_PACKAGE = "on the images in the package"


@dataclass(frozen=True)
class Preset:
    """How a task was evaluated by somebody.

    Args:
        strategy: as the command line spells it.
        loss: "l2" or "l1".
        image_size: edge of the images in pixels.
        num_images: of the test images, evenly spread, so many were evaluated; all of them if None.
        accuracy: in percent, as published, for comparison; of Stable Diffusion 2.0.
        template: of its prompts; the task's if None.
        names: what its prompts call the classes, in the order of the task's `class_names`; those if ().
    """

    strategy: str
    loss: str = "l2"
    image_size: int | None = 512
    num_images: int | None = None
    accuracy: float | None = None
    template: str | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionTask:
    """A benchmark whose images have captions of their own, of which one is true.

    Args:
        name: on the command line.
        title: of the data set.
        open: what reads it, with the options in `takes`, as far as they are given, by keyword.
        licence: of the images.
        citation: authors, year, title, place.
        num_images: of the split; None where that depends on the user's file.
        takes: options of `evaluate` that say where and what the images are: data, images, split, image_column,
            caption_column, false_column, tag_column, allow_incomplete; none for one in the package.
        presets: by name; their accuracy is the text score of pairs.
        checked: on what it was run.
        note: what one should know.
    """

    name: str
    title: str
    open: Callable[..., CaptionedSource]
    licence: str
    citation: str
    num_images: int | None = None
    takes: tuple[str, ...] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    checked: str = _IN_THE_PACKAGE
    note: str = ""


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        name: on the command line.
        title: of the data set.
        source: what `sources.open_labelled` opens: the id of a data set on the hub; "" where there is `make`.
        num_classes: of its labels.
        num_images: of the split.
        template: of prompts, with {} for the name of a class.
        metric: the one that it is reported by.
        licence: of the images.
        citation: authors, year, title, place.
        split: that is evaluated.
        class_names: as its keepers publish them, in the order of the labels, for data whose classes are called by
            numbers, and for prompts, where those of the data differ in spelling alone; None where it is in `source`.
        also: other names of classes, in the spelling of `tasks.prompting.spelled`, → those in class_names.
        renamed: whether class_names replace the names in `source`, too.
        told_apart: names that several of its classes share → what prompts call these instead, by index; the published
            tables, whose prompts presets keep, leave them alike.
        imagenet_ids: where its classes are some of ImageNet's thousand, which ones, so that models of that thousand can
            be evaluated.
        presets: by name.
        make: what makes its images of those in the package, or in the folder and of the split that are given in their
            place.
        note: what one should know.
    """

    name: str
    title: str
    source: str
    num_classes: int
    num_images: int
    template: str
    metric: Metric
    licence: str
    citation: str
    split: str = "test"
    class_names: tuple[str, ...] | None = None
    also: Mapping[str, str] = field(default_factory=dict)
    renamed: bool = False
    told_apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    imagenet_ids: tuple[int, ...] | None = None
    presets: Mapping[str, Preset] = field(default_factory=dict)
    make: Callable[[str | None, str | None], LabelledSource] | None = None
    note: str = ""

    @property
    def checked(self) -> str:
        """On what it was run."""
        return _IN_THE_PACKAGE if self.make is not None else "on small copies of its schema; never on the data"
