"""What the commands share: the app, common options, standard error, loading a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .. import __version__

if TYPE_CHECKING:  # takes seconds to import
    from ..classifier import DiffusionClassifier

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
Model = Annotated[str, typer.Option(help="Bundled name, folder, or hub id; see `models`.")]
BatchSize = Annotated[str, typer.Option(help="Rows of one network call, or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda …")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="torch.compile: slower to start, then faster.")]


def say(line: str) -> None:
    """One line on standard error, above the progress bar if there is one."""
    stderr.print(Text(line), soft_wrap=True)


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


def load_classifier(
    model: str, device: str, dtype: str, batch_size: str, compile_network: bool, calibration: Path | None = None
) -> DiffusionClassifier:
    """See `DiffusionClassifier.from_pretrained`."""
    from ..classifier import DiffusionClassifier

    return DiffusionClassifier.from_pretrained(
        model,
        device=device,
        dtype=dtype,
        batch_size=int(batch_size) if batch_size.isdecimal() else batch_size,
        compile_network=compile_network,
        calibration=calibration,
    )
