"""Image folders with a metadata.csv, metadata.jsonl or metadata.parquet, as in `datasets`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .dataset_columns import Table
from .file_sets import check_complete, files_of_split, split_of
from .formats import is_image
from .images import find_images
from .parquet_tables import open_parquet
from .splits import METADATA, counted
from .splits import listed as shown
from .splits import split_of as split_of_name
from .text_tables import read_rows, rows_as_table

_NAME = "file_name"


def open_metadata(source: str, root: Path, files: Sequence[Path], split: str | None, allow_incomplete: bool) -> Table:
    """Open the images that metadata files list as a table, sorted by path.

    Args:
        source: The path that was given.
        root: The folder.
        files: Metadata files in it. Relative paths start at the folder of each file.
        split: See `files_of_split`.
        allow_incomplete: Leave out images that no file lists.

    Raises:
        InputError: A file cannot be read, or an image is listed twice or not at all.
    """
    notes: tuple[str, ...] = ()
    chosen = sorted(files, key=str)
    if lists_of_splits := any(split_of(file.relative_to(root)) for file in files):
        chosen, notes = files_of_split(root, chosen, split, allow_incomplete)
    rows: dict[str, dict[str, Any]] = {}
    for file in chosen:
        for row in _rows(file):
            name = row.pop(_NAME, None)
            if not isinstance(name, str):
                raise InputError(f"{file} has a row without {_NAME}, the path of an image")
            path = os.path.relpath(file.parent / name, root)
            if path in rows:
                raise InputError(f"{file} lists {name}, which is listed twice")
            rows[path] = {"image": path, **row}
    listed = set(rows)
    if not lists_of_splits:
        rows = _of_split(root, rows, split)
    found = dict.fromkeys(os.path.relpath(file, root) for file in find_images([file.parent for file in chosen]))
    others = [path for path in found if path not in listed and Path(path).name.lower() not in METADATA]
    unlisted = [path for path in others if is_image(root / path)]
    problem = f"{len(unlisted)} images in {source} are not listed in {chosen[0].name}, such as {''.join(unlisted[:1])}"
    notes += check_complete([problem] if unlisted else [], allow_incomplete)
    if strange := [path for path in others if path not in unlisted]:
        told = counted(strange, "file is no image and was", "files are no images and were")
        notes += (f"{told} left out: {shown(strange)}",)
    return rows_as_table(source, "metadata", [rows[path] for path in sorted(rows)], (), root, notes)


def _of_split(root: Path, rows: dict[str, dict[str, Any]], split: str | None) -> dict[str, dict[str, Any]]:
    """Return the rows of a split if all listed images are in split folders, otherwise all rows."""
    in_splits = all(split_of_name(path.split("/")[0]) and "/" in path for path in rows)
    tops = {Path(path).parts[0] for path in rows} if in_splits else {"."}
    chosen = {
        file.parent.name for file in files_of_split(root, [root / top / "_" for top in sorted(tops)], split, False)[0]
    }
    return {path: row for path, row in rows.items() if Path(path).parts[0] in chosen} if in_splits else rows


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix.lower() != ".parquet":
        return read_rows(file)[0]
    table = open_parquet(str(file), [file])
    columns = {name: table.values(name) for name in table.columns}
    return [{name: column[i] for name, column in columns.items()} for i in range(len(table))]
