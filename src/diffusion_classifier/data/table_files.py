"""Open a table: a file, a folder of files, or a data set on the hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..errors import InputError
from .dataset_columns import Column, Table, column_of
from .file_sets import check_complete, files_of_split, missing_shards
from .images import find_images
from .metadata import open_metadata
from .parquet_tables import open_parquet
from .shards import open_shards
from .splits import METADATA
from .text_tables import TEXT_TABLES, read_rows, rows_as_table

_FILES = (".parquet", *TEXT_TABLES, ".tar")
"""Supported suffixes of files."""
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_ARCHIVES = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")

_CONVERTED = "refs/convert/parquet"
"""Branch with the hub's Parquet conversion of a data set whose loading script is not executed."""


def load_table(source: str, split: str | None, allow_incomplete: bool = False) -> Table:
    """Open the table of a data set; see `open_labelled` for the arguments.

    Raises:
        InputError: There is no such table, or it cannot be read.
    """
    path = Path(source)
    if path.is_file():
        return _of_file(source, path, allow_incomplete)
    if path.is_dir():
        return _of_folder(source, path, split, allow_incomplete)
    if path.suffix.lower() in _FILES:
        raise InputError(f"there is no file {source}")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise InputError(f"there is no folder {source}, and it is not a valid data set name")
    return _of_hub(source, split, allow_incomplete)


def _of_file(source: str, path: Path, allow_incomplete: bool) -> Table:
    """Open one file, which is one split whatever its name."""
    suffix = path.suffix.lower()
    if suffix in _ARCHIVES:
        raise InputError(f"{source} is compressed: unpack it first")
    if suffix not in _FILES:
        raise InputError(f"{source} is not a data set: supported files are {', '.join(_FILES)}")
    notes: tuple[str, ...] = ()
    if (match := re.search(r"(\d+)-of-(\d+)", path.stem)) and int(match[2]) > 1:
        notes = (f"{source} is one of {int(match[2])} shards: the others are not read",)
    if suffix == ".parquet":
        return open_parquet(source, [path], notes)
    if suffix == ".tar":
        return open_shards(source, [path], allow_incomplete, notes)
    return rows_as_table(source, "text", *read_rows(path), path.parent, notes)


def _of_folder(source: str, path: Path, split: str | None, allow_incomplete: bool) -> Table:
    there = find_images([path])
    if metadata := [f for f in there if f.name.lower() in METADATA]:
        return open_metadata(source, path, metadata, split, allow_incomplete)
    if all(f.suffix.lower() in TEXT_TABLES for f in there):
        raise InputError(f"{source} is a folder without images: pass the file itself, {there[0]}")
    files = {suffix: [f for f in there if f.suffix.lower() == suffix] for suffix in (".parquet", ".tar")}
    if all(files.values()):
        parquet, tar = (found[0] for found in files.values())
        raise InputError(f"{source} holds both {parquet} and {tar}: pass a folder with one kind of file, or one file")
    suffix = next((suffix for suffix, found in files.items() if found), None)
    if suffix is None:
        raise InputError(
            f"{source} holds images and nothing that describes them: captions are in a metadata.csv with the columns "
            "file_name and text"
        )
    chosen, notes = files_of_split(path, sorted(files[suffix], key=str), split, allow_incomplete)
    notes += check_complete(missing_shards(chosen), allow_incomplete)
    if images := [f for f in there if f.suffix.lower() in _IMAGES]:
        told = f"{source} holds {len(images)} images beside its {suffix} files, such as {images[0]}"
        if suffix == ".tar" and not allow_incomplete:
            raise InputError(f"{told}: move them elsewhere, or leave them out by --allow-incomplete")
        notes += (f"{told}: only images that a table refers to are used",)
    if suffix == ".parquet":
        return open_parquet(source, chosen, notes)
    return open_shards(source, chosen, allow_incomplete, notes)


def _of_hub(source: str, split: str | None, allow_incomplete: bool) -> Table:
    try:
        found = _load(source, split)
    except InputError as e:
        if "scripts are no longer supported" not in str(e):
            raise
        found = _load(source, split, revision=_CONVERTED)
    if list(found.features) == ["text"] and (shards := _shards_of_hub(source, split)) is not None:
        return _of_folder(source, shards, split, allow_incomplete)
    return _of_dataset(source, "hub", found)


def _shards_of_hub(source: str, split: str | None) -> Path | None:
    """Download the shards of a data set that `datasets` read as text, because of the text files beside them."""
    from huggingface_hub import snapshot_download

    patterns = [f"{split or 'test'}/{name}" for name in ("*.tar", "nshards.txt")]
    try:
        folder = Path(snapshot_download(source, repo_type="dataset", allow_patterns=patterns))
    except (OSError, ValueError) as e:
        raise InputError(f"shards of {source} cannot be downloaded: {e}") from e
    return folder if any(folder.rglob("*.tar")) else None


def _load(source: str, split: str | None, **options: Any) -> Any:
    """Load a data set with `datasets`.

    Raises:
        InputError: The data set cannot be loaded; the message states the innermost cause.
    """
    import datasets

    try:
        with _bars_on_terminals():
            if split is None:
                splits = datasets.get_dataset_split_names(source, **options)
                split = splits[0] if len(splits) == 1 else "test"
            return datasets.load_dataset(source, split=split, **options)
    except Exception as e:
        if "gated dataset" in str(e):
            raise InputError(
                f"{source} is for those who accepted its licence: do so at https://huggingface.co/datasets/{source}, "
                "and log in on this machine by `hf auth login`"
            ) from e
        name = options.get("data_dir", source)
        raise InputError(f"{name} cannot be read as a data set (split {split!r}): {cause_of(e)}") from e


def cause_of(error: BaseException) -> str:
    """Return the messages of an exception and of its innermost cause, in one line."""
    deepest = error
    while (below := deepest.__cause__ or (None if deepest.__suppress_context__ else deepest.__context__)) is not None:
        deepest = below
    told = [str(error)] if deepest is error else [str(error), f"{type(deepest).__name__}: {deepest}"]
    return "; ".join(" ".join(text.split()).rstrip(".") for text in told)


def _of_dataset(source: str, kind: str, found: Any) -> Table:
    """Wrap a `datasets.Dataset`."""
    if not len(found):
        raise InputError(f"{source} holds no data: it has no rows")
    arrow = found.with_format("arrow")
    columns: dict[str, Column] = {}
    for field in found.features.arrow_schema:
        feature = found.features[field.name]
        columns[field.name] = column_of(
            field.type, {"_type": type(feature).__name__, "names": getattr(feature, "names", ())}
        )
    one = {name: arrow.select_columns(name) for name in columns}

    def values(name: str) -> list[Any]:
        if columns[name].kind != "image":
            found: list[Any] = one[name][:].column(name).to_pylist()
            return found
        paths: list[str | None] = []
        for table in one[name].iter(1000):
            chunks = table.column(name).chunks
            paths += [p for chunk in chunks for p in pa.compute.struct_field(chunk, "path").to_pylist()]
        return paths

    def cell(name: str, i: int) -> Any:
        return one[name][i].column(name)[0].as_py()

    keys = tuple(map(str, values("__key__"))) if "__key__" in columns else None
    return Table(
        source, kind, columns, len(found), values, cell, lambda _: Path(source), lambda i: f"{source}[{i}]", keys
    )


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Disable progress bars if standard error is not a terminal."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    if shown and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
