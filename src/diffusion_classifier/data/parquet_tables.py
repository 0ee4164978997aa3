"""Parquet files, read in place without a cache, so that a changed file is never read from an old copy."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import InputError
from .dataset_columns import Column, Table, column_of

_BATCH = 32
"""Number of rows per read of an image column."""


def open_parquet(source: str, files: Sequence[Path], notes: tuple[str, ...] = ()) -> Table:
    """Open Parquet files as one table, in the given order.

    Raises:
        InputError: A file cannot be read, has no rows, or has other columns or class names than the first.
    """
    columns: dict[str, Column] = {}
    groups: list[tuple[Path, int]] = []
    counts: list[int] = []
    for file in files:
        with _open(file) as parquet:
            found = _columns(file, parquet.schema_arrow)
            if not columns:
                columns = found
            _check_same(files[0], columns, file, found)
            metadata = parquet.metadata
            groups += [(file, g) for g in range(metadata.num_row_groups)]
            counts += [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    if not sum(counts):
        raise InputError(f"{source} holds no data: it has no rows")
    starts = [0, *accumulate(counts)]

    def values(name: str) -> list[Any]:
        kind = columns[name].kind
        found: list[Any] = []
        for file in files:
            with _open(file) as parquet:
                type_ = parquet.schema_arrow.field(name).type
                if kind == "image" and type_.get_field_index("path") < 0:
                    found += [None] * parquet.metadata.num_rows
                    continue
                part = f"{name}.path" if kind == "image" else name
                try:
                    read = parquet.read(columns=[part]).column(name).to_pylist()
                except (OSError, pa.ArrowException) as e:
                    raise InputError(f"column {name!r} of {file} cannot be read: {e}") from e
            found += [value and value["path"] for value in read] if kind == "image" else read
        return found

    readers: dict[str, _Column] = {}
    lock = Lock()

    def cell(name: str, i: int) -> Any:
        with lock:
            return readers.setdefault(name, _Column(name, groups, starts))[i]

    parts = [(file, start) for (file, group), start in zip(groups, starts, strict=False) if group == 0]

    def folder(i: int) -> Path:
        return parts[bisect_right(parts, i, key=lambda part: part[1]) - 1][0].parent

    return Table(source, "parquet", columns, starts[-1], values, cell, folder, lambda i: f"{source}[{i}]", notes=notes)


class _Column:
    """Values of an image column, read in small batches; access in ascending order is fastest.

    Args:
        name: Name of the column.
        groups: Files and row groups.
        starts: First row of each group, and the total number of rows.
    """

    def __init__(self, name: str, groups: Sequence[tuple[Path, int]], starts: Sequence[int]) -> None:
        self._name, self._groups, self._starts = name, groups, starts
        self._group, self._first, self._next = -1, 0, 0
        self._values: pa.Array = pa.nulls(0)
        self._batches: Iterator[pa.Array] = iter(())

    def __getitem__(self, i: int) -> Any:
        group = bisect_right(self._starts, i) - 1
        if group != self._group or i < self._first:
            file, number = self._groups[group]
            self._group, self._first, self._next = group, self._starts[group], self._starts[group]
            self._batches = _batches(file, number, self._name)
        while i >= self._next:
            self._values = next(self._batches)
            self._first, self._next = self._next, self._next + len(self._values)
        return self._values[i - self._first].as_py()


def _batches(file: Path, group: int, name: str) -> Iterator[pa.Array]:
    with _open(file) as parquet:
        try:
            for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=[name]):
                yield batch.column(name)
        except (OSError, pa.ArrowException) as e:
            raise InputError(f"column {name!r} of {file} cannot be read: {e}") from e


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=1 << 20)  # so that a column is not read at once
    except (OSError, pa.ArrowException) as e:
        raise InputError(f"{file} cannot be read as Parquet: {e}") from e


def _columns(file: Path, schema: pa.Schema) -> dict[str, Column]:
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise InputError(f"{file} has the column {twice[0]!r} twice")
    try:
        declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        declared = {}
    return {
        field.name: column_of(field.type, d if isinstance(d := declared.get(field.name), dict) else None)
        for field in schema
    }


def _check_same(first: Path, columns: dict[str, Column], file: Path, found: dict[str, Column]) -> None:
    if columns.keys() != found.keys():
        raise InputError(f"{file} has the columns {', '.join(found)}, and {first} has {', '.join(columns)}")
    for name, column in columns.items():
        if found[name].names != column.names:
            raise InputError(f"classes of column {name!r} of {file} have other names than in {first}")
        if found[name].kind != column.kind:
            raise InputError(
                f"column {name!r} of {file} holds {found[name].type}, and that of {first} holds {column.type}"
            )
