"""Shared by the commands: the app, groups of options, standard error, progress bars."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .. import __version__
from ..data.prompts import split_labels
from ..errors import InputError
from .groups import option
from .rows import Format

if TYPE_CHECKING:  # takes seconds to import
    from ..classifier import DiffusionClassifier
    from ..denoisers.base import Denoiser
    from ..search.shortlists import Shortlist

app = typer.Typer(
    name="diffusion-classifier",
    help="""Use any conditional diffusion model as an image classifier.

    Examples:
    `diffusion-classifier classify photo.png`

    `diffusion-classifier classify --help`
    """,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stdout, stderr = Console(), Console(stderr=True)

Images = Annotated[list[str], typer.Argument(help="Image files, or folders of images.", metavar="IMAGE|FOLDER...")]
BatchSize = Annotated[str, option("Model", "Rows per network call, or auto, which measures the fastest.")]
Device = Annotated[str, option("Model", "Device of the networks: auto, cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    option(
        "Model",
        "Precision of the networks: auto, float32, bfloat16 or float16. auto: 16 bits if the device is fast in them.",
        metavar="DTYPE",
    ),
]
Compile = Annotated[
    bool,
    option("Model", "Compile the network by torch.compile: slower to start, then faster.", "--compile/--no-compile"),
]
ImageSize = Annotated[
    int | None,
    option("Model", "Height and width of the model's images in pixels. Default: the model's own.", min=1),
]
Template = Annotated[
    list[str] | None,
    option(
        "Scoring",
        "Prompt of a label for a text-to-image model, such as 'a photo of a {}.'. Default: the label itself. "
        "Repeatable: the prompts of a label are averaged.",
    ),
]
Loss = Annotated[
    Literal["l2", "l1", "huber", "vlb", "l2+vlb"] | None,
    option(
        "Scoring",
        "Loss between noise and prediction: l2, l1 or huber; or vlb or l2+vlb, if the model predicts variances. "
        "Default: the model's own.",
        metavar="LOSS",
    ),
]
OutputFormat: TypeAlias = Literal["table", "json", "markdown"]
TableFormat = Annotated[OutputFormat, option("Output", "Format on standard output.", "--format")]
Output = Annotated[Format, option("Output", "Format on standard output.", "--format")]


@dataclass(frozen=True)
class DenoiserOptions:
    """Options that load a diffusion model."""

    model: Annotated[str, option("Model", "Bundled name, folder or hub id; see `models`.")] = "fashion"
    image_size: ImageSize = None
    lora: Annotated[
        list[str] | None,
        option("Model", "LoRA weights: file, folder or hub id, with an optional scale as in FILE@0.8. Repeatable."),
    ] = None
    word: Annotated[
        list[str] | None,
        option(
            "Model", "Textual inversion embedding: file, folder or hub id, with its token as in TOY=FILE. Repeatable."
        ),
    ] = None
    config: Annotated[
        str | None,
        option("Model", "Folder or hub id of a pipeline whose configs a single-file checkpoint is loaded with."),
    ] = None
    without: Annotated[
        list[str] | None,
        option(
            "Model",
            "Component to leave out, such as text_encoder_3 and tokenizer_3 of Stable Diffusion 3. Repeatable.",
        ),
    ] = None
    variant: Annotated[
        str | None, option("Model", "Variant of the weights to load, such as fp16. Default: the one without a name.")
    ] = None
    device: Device = "auto"
    dtype: Dtype = "auto"

    def load_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `load_denoiser`."""
        return {
            "image_size": self.image_size,
            "loras": self.lora or (),
            "words": self.word or (),
            "config": self.config,
            "without": self.without or (),
            "variant": self.variant,
            "device": self.device,
            "dtype": self.dtype,
        }

    def load_denoiser(self) -> Denoiser:
        """Load the model without a classifier around it."""
        from ..denoisers import load_denoiser

        return load_denoiser(self.model, **self.load_arguments())


@dataclass(frozen=True)
class ModelOptions(DenoiserOptions):
    """Options that load a classifier."""

    batch_size: BatchSize = "auto"
    compile_network: Compile = False
    calibration: Annotated[
        Path | None,
        option("Model", "File that `calibrate` wrote: strategy, loss, timesteps, weights and temperature."),
    ] = None

    def load_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `DiffusionClassifier.from_pretrained`."""
        return super().load_arguments() | {
            "batch_size": batch_size_of(self.batch_size),
            "compile_network": self.compile_network,
            "calibration": self.calibration,
        }

    def load_classifier(self) -> DiffusionClassifier:
        """Load the model."""
        from ..classifier import DiffusionClassifier

        return DiffusionClassifier.from_pretrained(self.model, **self.load_arguments())


@dataclass(frozen=True)
class PromptOptions:
    """Options that make prompts of labels or captions."""

    template: Template = None
    average: Annotated[
        Literal["error", "embedding"], option("Scoring", "Quantity averaged over several prompts of a label.")
    ] = "error"

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of `DiffusionClassifier.stream`."""
        return {"template": self.template or None, "average": self.average}


@dataclass(frozen=True)
class ScoringOptions:
    """Options that measure errors and turn them into scores."""

    timesteps: Annotated[
        str | None,
        option(
            "Scoring",
            "Timesteps of the draws: even, random, middle:0.5, even:0.1-0.9, or a list such as 250,500. "
            "Default: the model's own.",
        ),
    ] = None
    loss: Loss = None
    weights: Annotated[
        str | None,
        option(
            "Scoring",
            "Timestep weights: uniform, training, fitted, or a JSON file of numbers. Default: the model's own.",
        ),
    ] = None
    temperature: Annotated[float | None, option("Scoring", "Temperature of the scores. Default: the model's own.")] = (
        None
    )
    seed: Annotated[int, option("Scoring", "Seed of the noise.")] = 0

    def settings(self, **others: Any) -> dict[str, Any]:
        """Return the keyword arguments of `DiffusionClassifier.stream`, with others such as the strategy."""
        return {
            "timesteps": self.timesteps,
            "loss": self.loss,
            "weights": self.weights,
            "temperature": self.temperature,
            "seed": self.seed,
        } | others


@dataclass(frozen=True)
class SearchOptions:
    """Options that choose which classes get how many draws."""

    strategy: Annotated[
        str | None,
        option(
            "Scoring",
            "Search strategy: fixed:DRAWS, staged:DRAWS/KEPT such as staged:25,250/5,1, or "
            "sequential:DRAWS/ERROR_RATE. Default: the model's own.",
        ),
    ] = None
    shortlist: Annotated[
        str | None,
        option(
            "Scoring",
            "Shortlist of candidates before the search: model:NAME, coarse:SIZE, coarse:MODEL, tree:FILE or "
            "gradient:DRAWS. Default: none.",
        ),
    ] = None
    keep: Annotated[
        int | None,
        option("Scoring", "Classes on the shortlist, or branches of a tree to follow. Default: depends on its kind."),
    ] = None

    def parse_shortlist(self) -> Shortlist | None:
        """Return the shortlist.

        Raises:
            InputError: the shortlist is not known, or --keep is given without one.
        """
        from ..search.shortlists import parse_shortlist

        if self.keep is not None and self.shortlist is None:
            raise InputError("--keep says how long a --shortlist is: give one")
        return None if self.shortlist is None else parse_shortlist(self.shortlist, self.keep)


@dataclass(frozen=True)
class ColumnOptions:
    """Options that find images and labels in a data set."""

    split: Annotated[str | None, option("Data", "Split of the data. Default: the one the run evaluated.")] = None
    image_column: Annotated[str | None, option("Data", "Column of the images. Default: the only column of images.")] = (
        None
    )
    label_column: Annotated[str | None, option("Data", "Column of the labels. Default: the only column of labels.")] = (
        None
    )


@dataclass(frozen=True)
class DataOptions(ColumnOptions):
    """Options that open labelled images."""

    split: Annotated[str | None, option("Data", "Split of the data. Default: the task's own, or test.")] = None
    class_names: Annotated[
        str | None,
        option(
            "Data",
            "Comma-separated class names, in the order of the sorted folders or of the data set; names with a comma in "
            "double quotes. Default: the data set's own.",
        ),
    ] = None
    allow_incomplete: Annotated[
        bool,
        option(
            "Data",
            "Accept data with missing shards, missing labels, or images that metadata.csv does not list.",
            "--allow-incomplete",
        ),
    ] = False

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `open_labelled`."""
        return vars(self) | {"class_names": None if self.class_names is None else split_labels(self.class_names)}


def batch_size_of(text: str) -> int | str:
    """Return a batch size as a number, or "auto"."""
    return int(text) if text.isdecimal() else text


def is_given(context: typer.Context, name: str) -> bool:
    """Return True if an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_unused(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Raise if options were given that would be ignored.

    Args:
        context: context of the command.
        names: names of its parameters.
        reason: what the options are for, to end the message.

    Raises:
        InputError: one of them was given.
    """
    for name in names:
        if is_given(context, name):
            raise InputError(f"--{name.replace('_', '-')} {reason}")


def find(arguments: list[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Return the image files that the arguments name, and the arguments that name none, with the reason.

    Raises:
        InputError: no argument names an image file.
    """
    from ..data.images import ImageError, find_images

    found: list[Path] = []
    missing: list[tuple[str, str]] = []
    for argument in arguments:
        try:
            found += find_images([argument])
        except ImageError as e:
            missing.append((argument, str(e).removeprefix(f"{argument}: ")))
    if not found:
        raise InputError("; ".join(f"{argument}: {reason}" for argument, reason in missing))
    return found, missing


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a text file.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not in UTF-8 (byte {e.object[e.start]:#x} at {e.start}): save it as UTF-8") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read as a text file, one a line: {e}") from e


def say(line: str) -> None:
    """Print a line on standard error, above the progress bar if there is one."""
    stderr.print(Text(line), soft_wrap=True)


def say_all(notes: Iterable[str]) -> None:
    """Print each note as a line on standard error."""
    for note in notes:
        say(note)


def _version(value: bool) -> None:
    if value:
        print(f"diffusion-classifier {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def progress_bar(*columns: str, disable: bool = False) -> Progress:
    """Return a progress bar on standard error. The text columns are format strings over the task's fields."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(column) for column in columns),
        console=stderr,
        redirect_stdout=False,  # rich would redirect what is meant for a file to standard error
        disable=disable,
    )


def end_in_order() -> None:
    """Exit cleanly on SIGTERM, as sent by `kill` or a batch system, so that open files are closed."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
