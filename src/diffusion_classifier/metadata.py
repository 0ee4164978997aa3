"""Captions or labels of images in a folder, in a metadata.csv, metadata.jsonl or metadata.parquet beside them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from .exceptions import InputError
from .splits import METADATA, Place, counted, find_split, listed, relative

_FILE = "file_name"


def has_metadata(folder: Path) -> bool:
    """Tell whether there is a file that `metadata_table` reads, at any depth."""
    found = (Path(where, name) for where, _, names in os.walk(folder) for name in names if name.lower() in METADATA)
    return any(_is_metadata(path) for path in found)


def metadata_table(source: str, split: str | None, *, allow_incomplete: bool = False) -> tuple[Any, tuple[str, ...]]:
    """Read the metadata of a folder of images: a table of `datasets`, with the images as the column image, and notes.

    Values in CSV files are text as written, and empty ones are missing. A file without the column file_name is no
    metadata. Metadata in a folder above that of the split count for the images in the split.

    Args:
        source: the folder, or one with a folder for each split.
        split: as in `splits.find_split`.
        allow_incomplete: leave out rows whose images are missing, with a note.

    Raises:
        InputError: as `find_split`; there are no metadata; a file cannot be read; an image that it lists is missing.
    """
    import datasets
    import pyarrow as pa

    notes: list[str] = []
    place = find_split(source, split, notes)
    files = _files(Path(source), place)
    if not files:
        raise InputError(
            f"{source} holds images and nothing that describes them: captions are in a metadata.csv with the columns "
            f"{_FILE} and text"
        )
    tables = []
    used: set[str] = set()
    missing: list[str] = []
    for file in files:
        rows = _read(file)
        if "image" in rows.column_names:
            raise InputError(f"{file} has a column 'image', which is what {_FILE} stands for: rename it")
        names = rows[_FILE].to_pylist()
        paths = [_path(file, i, name) for i, name in enumerate(names)]
        within = [i for i, path in enumerate(paths) if Path(path).is_relative_to(os.path.normpath(place.path))]
        kept = [i for i in within if os.path.isfile(paths[i])]
        missing += [f"{names[i]} ({relative([file], source)[0]})" for i in within if not os.path.isfile(paths[i])]
        if kept:
            images = pa.array([os.path.abspath(paths[i]) for i in kept])
            rows = rows.take(kept).set_column(rows.column_names.index(_FILE), "image", images)
            tables.append(datasets.Dataset(rows).cast_column("image", datasets.Image()))
            used |= {paths[i] for i in kept}
    if missing:
        told = f"{counted(missing, 'image is', 'images are')} listed and missing in {source}: {listed(missing)}"
        if not allow_incomplete:
            raise InputError(f"{told}; allow incomplete data (--allow-incomplete) to go without")
        notes.append(told)
    if not used:
        raise InputError(f"the metadata in {source} list no image of {place.path}")
    if unlisted := [p for at in place.walk() for p in at.images if os.path.normpath(p) not in used]:
        what = counted(unlisted, "image is in no row and was", "images are in no row and were")
        notes.append(f"{what} left out, by the metadata: {listed(relative(unlisted, source))}")
    try:
        return datasets.concatenate_datasets(tables), tuple(notes)
    except ValueError as e:
        raise InputError(f"the metadata files in {place.path} have different columns: {e}") from e


def _files(root: Path, place: Place) -> list[Path]:
    """Metadata in the place, in the folders below, and in those between it and the root."""
    above = [Place(path) for path in place.path.parents if path == root or root in path.parents]
    at = [*above, *place.walk()] if place.path != root else list(place.walk())
    return [path for here in at for path in here.others if _is_metadata(path)]


def _is_metadata(path: Path) -> bool:
    return path.name.lower() in METADATA and _FILE in _read(path).column_names


def _path(file: Path, row: int, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise InputError(f"{file}[{row}] names no file: column {_FILE!r} holds {name!r}")
    return os.path.normpath(file.parent / name)


def _read(file: Path) -> Any:
    """An Arrow table.

    Raises:
        InputError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix.lower() == ".parquet":
            return pq.read_table(file)
        text = file.read_text("utf-8-sig")
        if file.suffix.lower() == ".csv":
            return _from_csv(text.splitlines(keepends=True))
        return pa.Table.from_pylist([json.loads(line) for line in text.splitlines() if line.strip()])
    except (OSError, ValueError, csv.Error, pa.ArrowException, AttributeError) as e:
        raise InputError(f"{file} cannot be read as metadata: {e}") from e


def _from_csv(lines: list[str]) -> Any:
    import pyarrow as pa

    reader = csv.reader(lines, strict=True)
    head = next(reader, [])
    if len(set(head)) < len(head):
        raise ValueError(f"two columns have one name in {', '.join(head)}")
    rows = []
    for row in reader:
        if row and len(row) != len(head):
            raise ValueError(f"line {reader.line_num} has {len(row)} fields, and the head has {len(head)}")
        rows += [[value or None for value in row]] if row else []
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(head)})
