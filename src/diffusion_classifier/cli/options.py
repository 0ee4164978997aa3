"""What the commands share: the app, common options, standard error, loading a model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .. import __version__
from ..errors import InputError
from .rows import Format

if TYPE_CHECKING:  # takes seconds to import
    from ..classifier import DiffusionClassifier
    from ..search.shortlists import Shortlist

app = typer.Typer(
    name="diffusion-classifier",
    help="""Turn any conditional diffusion model into a classifier.

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
Images = Annotated[list[str], typer.Argument(help="Image files, or folders of them.", metavar="IMAGE|FOLDER…")]
Model = Annotated[str, typer.Option(help="Bundled name, folder, or hub id; see `models`.")]
BatchSize = Annotated[str, typer.Option(help="Rows of one network call, or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda …")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile: slower to start, then faster.")]

Template = Annotated[
    list[str] | None,
    typer.Option(
        help="What makes a label a prompt, as 'a photo of a {}.', for models that read text; the label itself if not "
        "given. Repeat it for several."
    ),
]
Average = Annotated[str, typer.Option(help="Over what several prompts of a label are averaged: error or embedding.")]
Timesteps = Annotated[str | None, typer.Option(help="even, random, middle:0.5, even:0.1-0.9, or a list as 250,500.")]
Loss = Annotated[
    str | None,
    typer.Option(help="l2, l1 or huber; vlb or l2+vlb where the variance is predicted; the model's own if not given."),
]
Weights = Annotated[
    str | None,
    typer.Option(help="Over time: JSON file of numbers, fitted, training, or uniform; the model's own if not given."),
]
Temperature = Annotated[float | None, typer.Option(help="Of the scores; the model's own if not given.")]
Seed = Annotated[int, typer.Option(help="Of the noise.")]
Calibration = Annotated[
    Path | None, typer.Option(help="File that `calibrate` wrote: strategy, loss, timesteps, temperature.")
]
ImageSize = Annotated[
    int | None, typer.Option(min=1, help="Pixels along an edge; what a text-to-image model was trained for else.")
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        help="Comma-separated, in the order of the sorted folders or of the data set; a name with a comma in double "
        "quotes. Its own names by default."
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help="Column of the images.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of the labels.")]
AllowIncomplete = Annotated[
    bool,
    typer.Option(
        "--allow-incomplete",
        help="Use data of which a part is missing: shards, labels, or images that metadata.csv does not list.",
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(help="LoRA weights: file, folder or hub id, with a scale as in FILE@0.8. Repeatable."),
]
Word = Annotated[
    list[str] | None,
    typer.Option(help="Learned word (textual inversion): file, folder or hub id, as in TOY=FILE. Repeatable."),
]
Config = Annotated[
    str | None, typer.Option(help="For a checkpoint of one file: folder or hub id of a pipeline with its configs.")
]
Without = Annotated[
    list[str] | None,
    typer.Option(help="Component to leave out: text_encoder_3 and tokenizer_3 of Stable Diffusion 3. Repeatable."),
]
Variant = Annotated[
    str | None, typer.Option(help="Of the weights, as fp16, where a folder or hub id has several or no other.")
]
TableFormat = Annotated[str, typer.Option("--format", help="table, json or markdown.")]
Output = Annotated[Format, typer.Option("--format", help="What is printed on standard output.")]


def check_format(output: str) -> None:
    """Complain of a format that `TableFormat` does not name.

    Raises:
        InputError: it is one.
    """
    if output not in ("table", "json", "markdown"):
        raise InputError(f"the format must be table, json or markdown; got {output!r}")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_unused(context: typer.Context, names: Sequence[str], reason: str) -> None:
    """Complain of options that were given and would be ignored.

    Args:
        context: of the command.
        names: of its parameters.
        reason: what they are for.

    Raises:
        InputError: one was given.
    """
    for name in names:
        if is_given(context, name):
            raise InputError(f"--{name.replace('_', '-')} {reason}")


def find(arguments: list[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Files that the arguments name, and arguments that name none with the reason.

    Raises:
        InputError: none names any.
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
    """Lines of a text file that are not empty.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is not in UTF-8 (byte {e.object[e.start]:#x} at {e.start}): save it as UTF-8") from e
    except OSError as e:
        raise InputError(f"{path} cannot be read as a text file, one a line: {e}") from e


def say(line: str) -> None:
    """One line on standard error, above the progress bar if there is one."""
    stderr.print(Text(line), soft_wrap=True)


def say_all(notes: Iterable[str]) -> None:
    """A line of standard error for each."""
    for note in notes:
        say(note)


def _version(value: bool) -> None:
    if value:
        print(f"diffusion-classifier {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def progress_bar(*columns: str, disable: bool = False) -> Progress:
    """A progress bar on standard error; the text columns are format strings over the task's fields."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        *(TextColumn(column) for column in columns),
        console=stderr,
        redirect_stdout=False,  # rich would print to standard error what is meant for a file
        disable=disable,
    )


def end_in_order() -> None:
    """Close what is open when the process is asked to end, as by `kill` or a batch system."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def shortlist_of(text: str | None, keep: int | None) -> Shortlist | None:
    """From --shortlist and --keep.

    Raises:
        InputError: what cannot be one; --keep without a shortlist.
    """
    from ..search.shortlists import parse_shortlist

    if keep is not None and text is None:
        raise InputError("--keep says how long a --shortlist is: give one")
    return None if text is None else parse_shortlist(text, keep)


def load_classifier(*arguments: Any, **options: Any) -> DiffusionClassifier:
    """A classifier from what the commands are given; arguments as in `load_arguments`."""
    from ..classifier import DiffusionClassifier

    return DiffusionClassifier.from_pretrained(**load_arguments(*arguments, **options))


def load_arguments(
    model: str,
    device: str,
    dtype: str,
    batch_size: str,
    compile_network: bool,
    calibration: Path | None = None,
    *,
    image_size: int | None = None,
    lora: list[str] | None = None,
    word: list[str] | None = None,
    config: str | None = None,
    without: list[str] | None = None,
    variant: str | None = None,
) -> dict[str, Any]:
    """Arguments of `DiffusionClassifier.from_pretrained`."""
    return {
        "model": model,
        "device": device,
        "dtype": dtype,
        "batch_size": int(batch_size) if batch_size.isdecimal() else batch_size,
        "compile_network": compile_network,
        "calibration": calibration,
        "image_size": image_size,
        "loras": lora or (),
        "words": word or (),
        "config": config,
        "without": without or (),
        "variant": variant,
    }
