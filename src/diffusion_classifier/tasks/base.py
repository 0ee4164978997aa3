"""What a benchmark is: images, class names, a prompt, the paper's settings, and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Metric = Literal["accuracy", "mean_per_class"]


@dataclass(frozen=True)
class Preset:
    """How a task was evaluated by somebody.

    Args:
        strategy: as the command line spells it.
        loss: "l2" or "l1".
        image_size: edge of the images in pixels.
        num_images: of the test images, evenly spread, so many were evaluated; all of them if None.
        accuracy: in percent, as published, for comparison; of Stable Diffusion 2.0.
    """

    strategy: str
    loss: str = "l2"
    image_size: int | None = 512
    num_images: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        name: on the command line.
        title: of the data set.
        source: what `sources.open_source` opens: the id of a data set on the hub, unless `bundled`.
        num_classes: of its labels.
        num_images: of the split.
        template: of prompts, with {} for the name of a class.
        metric: the one that it is reported by.
        licence: of the images.
        citation: authors, year, title, place.
        split: that is evaluated.
        class_names: where the data set has none of its own.
        imagenet_ids: where its classes are some of ImageNet's thousand, which ones, so that models of that thousand can
            be evaluated.
        presets: by name.
        bundled: whether the images are in the package.
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
    imagenet_ids: tuple[int, ...] | None = None
    presets: Mapping[str, Preset] = field(default_factory=dict)
    bundled: bool = False
    note: str = ""
