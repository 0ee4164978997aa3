"""Shared by the commands that train: options, labelled images, progress reports."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import Progress as Bar

from .groups import option
from .options import DataOptions, progress_bar, say, say_all, stderr

if TYPE_CHECKING:  # takes seconds to import
    from ..training.images import TrainingImages
    from ..training.loop import Progress

LINE_EVERY = 100
"""Training steps between two lines of progress, if standard error is not a terminal."""

LabelledData = Annotated[
    str,
    typer.Argument(
        help="Folder of IDX files, folder with one sub-folder of images per class, or anything `datasets` loads."
    ),
]
ModelOut = Annotated[
    Path, typer.Option(help="Folder for the model. Run the command again to resume from its checkpoint.")
]
Size = Annotated[
    int | None, option("Data", "Height and width of training images in pixels. Default: the images' own.", min=1)
]
HeldOut = Annotated[
    int | None, option("Data", "Images held out for validation. Default: a tenth, at most 1,000.", min=0)
]
Architecture = Annotated[
    Literal["resnet-18", "resnet-34", "resnet-50", "resnet-101", "vit-tiny", "vit-small", "vit-base"],
    option(
        "Training",
        "Network: resnet-18, resnet-34, resnet-50, resnet-101, vit-tiny, vit-small or vit-base.",
        metavar="NAME",
    ),
]
Augment = Annotated[
    Literal["none", "flips", "usual"],
    option("Training", "Augmentation. flips: mirrored at random. usual: mirrored, and shifted by up to an eighth."),
]
Optimizer = Annotated[
    Literal["adamw", "muon"],
    option("Training", "Optimizer. muon takes fewer but slower steps, and about twice the learning rate."),
]


@dataclass(frozen=True)
class TrainingDataOptions(DataOptions):
    """Options that open labelled images to train on."""

    split: Annotated[str, option("Data", "Split of the data to train on.")] = "train"


@dataclass(frozen=True)
class TrainingOptions:
    """Options of every training loop."""

    epochs: Annotated[
        float | None, option("Training", "Passes over the training images. Default: 10, or enough for 500 steps.")
    ] = None
    batch_size: Annotated[int, option("Training", "Images per step.")] = 64
    learning_rate: Annotated[float, option("Training", "Peak learning rate of the cosine schedule.")] = 2e-3
    warmup: Annotated[int, option("Training", "Steps of linear warm-up, at most a tenth of all steps.")] = 200
    weight_decay: Annotated[float, option("Training", "Weight decay, multiplied by the learning rate.")] = 0.01
    ema: Annotated[
        float, option("Training", "Decay of the exponential moving average of the weights, which is saved.")
    ] = 0.999
    seed: Annotated[
        int, option("Training", "Seed of the weights, the data order, augmentation, noise and held-out images.")
    ] = 0
    checkpoint_every: Annotated[
        int | None,
        option("Training", "Steps between checkpoints. Default: half of all steps, within 100 and 1,000.", min=1),
    ] = None

    def config(self) -> dict[str, Any]:
        """Return the settings that a training config has in common with other configs."""
        return {name: value for name, value in vars(self).items() if name != "checkpoint_every"}


def load_and_hold_out(
    data: str, options: TrainingDataOptions, held_out: int | None, seed: int, **others: Any
) -> tuple[TrainingImages, TrainingImages]:
    """Return training and validation images; other arguments as in `load_labelled_images`."""
    from ..training.images import load_labelled_images

    return hold_out(load_labelled_images(data, **options.arguments(), **others), held_out, seed)


def hold_out(images: TrainingImages, held_out: int | None, seed: int) -> tuple[TrainingImages, TrainingImages]:
    """Return training and validation images. A tenth, at most 1,000, is held out if `held_out` is None."""
    say_all(images.notes)
    training, validation = images.split(min(1000, len(images) // 10) if held_out is None else held_out, seed)
    say(f"{len(training)} training and {len(validation)} validation images of {len(images.class_names)} classes")
    return training, validation


class _Report:
    """Reports the progress of training, by a bar on a terminal and by lines elsewhere."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.smoothed, self.last, self.batch_size = float("nan"), 0, 1

    def on_stage(self, name: str, num_steps: int, batch_size: int) -> None:
        """Start the bar of a stage."""
        self.bar.add_task(name, total=num_steps, loss="", rate=0.0)
        self.smoothed, self.last, self.batch_size = float("nan"), 0, batch_size

    def on_step(self, p: Progress) -> None:
        """Report a step."""
        task, bar = self.bar.tasks[-1], self.bar
        self.smoothed = p.loss if math.isnan(self.smoothed) else 0.98 * self.smoothed + 0.02 * p.loss
        rate = (task.speed or 0.0) * self.batch_size
        loss = "" if math.isnan(self.smoothed) else f"loss {self.smoothed:.4f}"  # computing latents has no loss
        bar.update(task.id, completed=p.step, loss=loss, rate=rate)
        if bar.disable and (p.step - self.last >= LINE_EVERY or p.step == p.num_steps):
            self.last = p.step
            left = timedelta(seconds=task.time_remaining or 0) if rate else "unknown time"
            stage = f"{p.stage}, " if p.stage else ""
            what = f"{loss}, " if loss else ""
            say(f"{stage}step {p.step} of {p.num_steps}: {what}{rate:.0f} images/s, {left} left")

    def on_validation(self, step: int, values: dict[str, float]) -> None:
        """Report a validation."""
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"step {step}: training loss {self.smoothed:.4f}, validation {text}")


@contextmanager
def reporter() -> Iterator[_Report]:
    """Show the progress of training while the context is open."""
    columns = ("{task.fields[loss]}", "{task.fields[rate]:.0f} images/s")
    with warnings.catch_warnings(), progress_bar(*columns, disable=not stderr.is_terminal) as bar:
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        yield _Report(bar)
