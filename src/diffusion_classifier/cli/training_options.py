"""What commands that train share: options, labelled images, progress."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress as Bar

from ..data.prompts import split_labels
from .options import progress_bar, say, say_all, stderr

if TYPE_CHECKING:  # takes seconds to import
    from ..training.images import TrainingImages
    from ..training.loop import Progress

LINE_EVERY = 100
"""Steps of training between lines where there is no terminal to draw a progress bar on."""

LabelledData = Annotated[
    str,
    typer.Argument(
        help="Folder of IDX files, folder with one sub-folder of images per class, or what `datasets` loads."
    ),
]
ModelOut = Annotated[
    Path, typer.Option(help="Folder for the model. Started again, training goes on from its checkpoint.")
]
Size = Annotated[int | None, typer.Option(min=1, help="Height and width in pixels; the images' own if not given.")]
Split = Annotated[str, typer.Option(help="Split of the data to train on.")]
HeldOut = Annotated[
    int | None, typer.Option(min=0, help="Images held out and reported on. A tenth, at most 1000, if not given.")
]
Architecture = Annotated[
    str, typer.Option(help="resnet-18, resnet-34, resnet-50, resnet-101, vit-tiny, vit-small or vit-base.")
]
Augment = Annotated[str, typer.Option(help="none, flips, or usual: mirrored, and moved by up to an eighth.")]
Optimizer = Annotated[str, typer.Option(help="adamw or muon.")]
Epochs = Annotated[
    float | None,
    typer.Option(help="Passes over the training images; 10, or as many as make 500 steps, if not given."),
]
StepSize = Annotated[int, typer.Option(help="Images per step.")]
LearningRate = Annotated[float, typer.Option(help="Peak of the cosine schedule.")]
Warmup = Annotated[int, typer.Option(help="Steps of linear warm-up, a tenth of all at most.")]
WeightDecay = Annotated[float, typer.Option(help="Times the learning rate, a step.")]
Ema = Annotated[float, typer.Option(help="Decay of the average of the weights, which is what is saved.")]
CheckpointEvery = Annotated[
    int | None,
    typer.Option(min=1, help="Steps between checkpoints; half of them if not given, but 100 at least, 1,000 at most."),
]


def load_and_hold_out(
    data: str, held_out: int | None, seed: int, *, class_names: str | None, **options: Any
) -> tuple[TrainingImages, TrainingImages]:
    """Training and validation images, as the options say; other arguments as in `load_labelled_images`."""
    from ..training.images import load_labelled_images

    names = split_labels(class_names) if class_names is not None else None
    return hold_out(load_labelled_images(data, class_names=names, **options), held_out, seed)


def hold_out(images: TrainingImages, held_out: int | None, seed: int) -> tuple[TrainingImages, TrainingImages]:
    """Training and validation images; a tenth is held out, at most 1000, if None."""
    say_all(images.notes)
    training, validation = images.split(min(1000, len(images) // 10) if held_out is None else held_out, seed)
    say(f"{len(training)} training and {len(validation)} validation images of {len(images.class_names)} classes")
    return training, validation


class _Report:
    """Progress of training, as a bar or as lines."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.smoothed, self.last, self.batch_size = float("nan"), 0, 1

    def on_stage(self, name: str, num_steps: int, batch_size: int) -> None:
        """Another stage begins."""
        self.bar.add_task(name, total=num_steps, loss="", rate=0.0)
        self.smoothed, self.last, self.batch_size = float("nan"), 0, batch_size

    def on_step(self, p: Progress) -> None:
        """A step is done."""
        task, bar = self.bar.tasks[-1], self.bar
        self.smoothed = p.loss if math.isnan(self.smoothed) else 0.98 * self.smoothed + 0.02 * p.loss
        rate = (task.speed or 0.0) * self.batch_size
        loss = "" if math.isnan(self.smoothed) else f"loss {self.smoothed:.4f}"  # of latents, there is none
        bar.update(task.id, completed=p.step, loss=loss, rate=rate)
        if bar.disable and (p.step - self.last >= LINE_EVERY or p.step == p.num_steps):
            self.last = p.step
            left = timedelta(seconds=task.time_remaining or 0) if rate else "unknown time"
            stage = f"{p.stage}, " if p.stage else ""
            what = f"{loss}, " if loss else ""
            say(f"{stage}step {p.step} of {p.num_steps}: {what}{rate:.0f} images/s, {left} left")

    def on_validation(self, step: int, values: dict[str, float]) -> None:
        """A model was validated."""
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        say(f"step {step}: training loss {self.smoothed:.4f}, validation {text}")


@contextmanager
def reporter() -> Iterator[_Report]:
    columns = ("{task.fields[loss]}", "{task.fields[rate]:.0f} images/s")
    with warnings.catch_warnings(), progress_bar(*columns, disable=not stderr.is_terminal) as bar:
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        yield _Report(bar)
