"""`scenes`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError
from .options import app, progress_bar, say


@app.command()
def scenes(
    out: Annotated[Path, typer.Option(help="Folder for images and metadata.csv, or, faster, a .parquet file.")],
    number: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 16,
    data: Annotated[
        str | None,
        typer.Option(help="Folder with the IDX files of Fashion-MNIST. Default: the bundled test images."),
    ] = None,
    split: Annotated[
        Literal["train", "validation", "test"],
        typer.Option(help="Split of the photographs. validation: 5,000 images held out of train.", metavar="SPLIT"),
    ] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scenes.")] = 0,
) -> None:
    """Write captioned scenes: photographs of clothes beside, above and below each other.

    They are training scenes: the pairs of things and the attributes held out for the tasks never occur.

    Examples:
    `diffusion-classifier scenes --out look/`

    `diffusion-classifier scenes --data fashion-mnist/ --split train --number 250000 --out scenes.parquet`
    """
    from datasets import Dataset, Features, Image, Value

    from ..data.scenes import load_photographs
    from ..data.scenes import scenes as scenes_of

    photographs = load_photographs(data, split)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise InputError(f"{out} already exists: choose another --out, or remove it")
    try:  # before the slow part
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
