"""`scenes`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import app, progress_bar, say


@app.command()
def scenes(
    out: Annotated[
        Path, typer.Option(help="Folder for images and metadata.csv, or a file that ends in .parquet, which is faster.")
    ],
    number: Annotated[int, typer.Option(min=1, help="Of scenes.")] = 16,
    data: Annotated[
        str | None,
        typer.Option(help="Folder with the IDX files of Fashion-MNIST; the bundled test images if not given."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Of the photographs: train, validation (5,000 held out of train) or test.")
    ] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of the scenes.")] = 0,
) -> None:
    """Write scenes with captions: photographs of clothes beside, above and below each other, to train on or to look at.

    The scenes are those of training: some pairs of things, and some attributes of some things, are never in them.

    Examples:
    `diffusion-classifier scenes --out look/`

    `diffusion-classifier scenes --data fashion-mnist/ --split train --number 250000 --out scenes.parquet`
    """
    from datasets import Dataset, Features, Image, Value

    from ..data.scenes import load_photographs
    from ..data.scenes import scenes as scenes_of

    photographs = load_photographs(data, split)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} is there already: choose another --out, or remove it")
    try:  # before anything takes long
        (out.parent if out.suffix == ".parquet" else out).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InputError(f"{out} cannot be written: {e}") from e
    rows = []
    with progress_bar() as bar:
        tracked = bar.track(scenes_of(photographs, number, seed), total=number, description="scenes")
        for i, made in enumerate(tracked):
            file = io.BytesIO()
            photographs.render(made.things).save(file, "PNG", compress_level=1)
            rows.append((f"{i:06d}.png", made.caption, file.getvalue()))
    try:
        if out.suffix == ".parquet":
            images = [{"bytes": content, "path": name} for name, _, content in rows]
            features = Features({"image": Image(), "text": Value("string")})
            columns = {"image": images, "text": [text for _, text, _ in rows]}
            Dataset.from_dict(columns, features).to_parquet(out)
        else:
            for name, _, content in rows:
                (out / name).write_bytes(content)
            with (out / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
                csv.writer(table).writerows([("file_name", "text"), *((name, text) for name, text, _ in rows)])
    except OSError as e:
        raise InputError(f"{out} cannot be written: {e}") from e
    say(f"{number} scenes of {len(photographs.labels)} photographs written to {out}")
