"""Definition of a benchmark: images, class names, prompts, published settings, and metric."""

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
    """Settings with which results on a task were published.

    Args:
        strategy: In the notation of `--strategy`.
        loss: "l2" or "l1".
        image_size: Height and width of the images in pixels. Default: the model's own, if None.
        num_images: Number of test images that were evaluated, evenly spread. All if None.
        accuracy: Published accuracy of Stable Diffusion 2.0, in percent, for comparison.
        template: Template of the prompts. The task's if None.
        names: Class names in the prompts, in the order of the task's `class_names`. Those if empty.
    """

    strategy: str
    loss: str = "l2"
    image_size: int | None = 512
    num_images: int | None = None
    accuracy: float | None = None
    template: str | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaptionTask:
    """A benchmark whose images each have captions of their own, one of them true.

    Args:
        name: Name on the command line.
        title: Name of the data set.
        open: Function that opens the data, called with those options in `takes` that the user gave.
        takes: Names of the options of `evaluate` that `open` accepts: data, images, split, image_column,
            caption_column, false_column, tag_column, allow_incomplete. Empty if the images are in the package.
        licence: Licence of the images.
        citation: Authors, year, title, place.
        num_images: Number of images in the split. None if that depends on the user's file.
        presets: Published settings by name. Their accuracy is the text score of pairs.
        checked: Data on which this task was tested.
        note: A remark for the user.
    """

    name: str
    title: str
    open: Callable[..., CaptionedSource]
    takes: tuple[str, ...] = ()
    licence: str
    citation: str
    num_images: int | None = None
    presets: Mapping[str, Preset] = field(default_factory=dict)
    checked: str = _IN_THE_PACKAGE
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark of classification. Its images come from `source`, or from `open`.

    Args:
        name: Name on the command line.
        title: Name of the data set.
        source: Data set on the hub, for `open_labelled`.
        open: Function that opens the data in place of `source`, called with those options in `takes` that the user
            gave.
        takes: Names of the options of `evaluate` that `open` accepts: data, split. Empty if the images are in the
            package.
        num_classes: Number of classes.
        num_images: Number of images in the split.
        template: Template of the prompts, with {} for the class name.
        metric: The metric in which results are published.
        licence: Licence of the images.
        citation: Authors, year, title, place.
        split: Split that is evaluated.
        class_names: Class names as the maintainers publish them, in the order of the labels. Used for data whose
            classes are numbers, and in prompts if the data's names differ in spelling only. None if `source` has them.
        also: Other names of classes, as `spelled` returns them, → those in class_names.
        renamed: Whether class_names replace the names in `source`, too.
        told_apart: Class name that several classes share → their names in prompts, by index. Presets keep the shared
            name, because the published results do.
        imagenet_ids: Indices among ImageNet's 1,000 classes, so that models of these classes can be evaluated.
        presets: Published settings by name.
        note: A remark for the user.
    """

    name: str
    title: str
    source: str = ""
    open: Callable[..., LabelledSource] | None = None
    takes: tuple[str, ...] = ()
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
    note: str = ""

    @property
    def checked(self) -> str:
        """Data on which this task was tested."""
        return _IN_THE_PACKAGE if self.open is not None else "on small copies of its schema; never on the data"
