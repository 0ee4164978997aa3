"""Tables in text files: CSV, tab-separated values, JSON and JSON Lines.

No type is guessed: a CSV field is text as written, and an empty field is missing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .dataset_columns import Column, Kind, Table

TEXT_TABLES = (".csv", ".tsv", ".json", ".jsonl")

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, without its byte order mark and with line feeds as line ends.

    Raises:
        InputError: The file cannot be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}") from e
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is in UTF-16: save it as UTF-8")
    if content[:2] == b"\x1f\x8b":
        raise InputError(f"{path} is compressed: unpack it first, for example with gunzip")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        raise InputError(
            f"{path} is not in UTF-8 (byte 0x{content[e.start]:02x} in line {line}): save it as UTF-8"
        ) from e
    if "\0" in text:
        raise InputError(f"{path} is not a text file: it contains zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_names(path: Path) -> tuple[str, ...]:
    """Read a file with one name per line; surrounding spaces are removed.

    Raises:
        InputError: The file cannot be read, is empty, or has an empty line before its end.
    """
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if "" in lines:
        raise InputError(
            f"line {lines.index('') + 1} of {path} is empty, but each line must hold one name: remove or fill the line"
            if any(lines)
            else f"{path} is empty"
        )
    return tuple(lines)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Read the rows of a file, and the number of the last line of each; no numbers for JSON.

    Raises:
        InputError: The file cannot be read; the message names the line.
    """
    suffix, text = path.suffix.lower(), read_text(path)
    if suffix in (".csv", ".tsv"):
        return _separated(path, text, "\t" if suffix == ".tsv" else ",")
    rows, lines = _json_lines(path, text) if suffix == ".jsonl" else _json(path, text)
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} must hold a list of objects, one per image")
    return rows, lines


def _separated(path: Path, text: str, separator: str) -> tuple[list[dict[str, Any]], list[int]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    header: list[str] | None = None
    try:
        for fields in reader:
            if not fields:  # an empty line
                continue
            if header is None:
                header = [name.strip() for name in fields]
                _check_header(path, header, separator)
                continue
            if len(fields) != len(header):
                raise InputError(
                    f"line {reader.line_num} of {path} has {len(fields)} fields, but its header has {len(header)}: put "
                    f"text that contains {'a comma' if separator == ',' else 'a tab'} in double quotes"
                )
            rows.append({name: field or None for name, field in zip(header, fields, strict=True)})
            lines.append(reader.line_num)
    except csv.Error as e:
        raise InputError(
            f"line {reader.line_num} of {path} cannot be read as CSV: {e} (close each quote, and double "
            "quotes inside quoted text)"
        ) from e
    if not rows:
        raise InputError(f"{path} is empty: it has {'no header' if header is None else 'a header and no rows'}")
    return rows, lines


def _check_header(path: Path, header: Sequence[str], separator: str) -> None:
    if len(header) == 1:
        for other, name in _OTHER_SEPARATORS.items():
            if other in header[0] and other != separator:
                raise InputError(
                    f"{path} separates fields with {name}: save it with commas"
                    + (", or rename it to .tsv" if other == "\t" else "")
                )
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{path} has the column {twice[0]!r} twice")


def _json(path: Path, text: str) -> tuple[list[Any], list[int]]:
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except ValueError as e:
        if isinstance(e, json.JSONDecodeError) and e.msg == "Extra data":
            return _json_lines(path, text)
        raise InputError(f"{path} cannot be read as JSON: {e}") from e
    if isinstance(content, dict) and content and all(isinstance(row, dict) for row in content.values()):
        content = [{"id": key, **row} for key, row in content.items()]  # the format of SugarCrepe
    return (content if isinstance(content, list) else [content]), []


def _json_lines(path: Path, text: str) -> tuple[list[Any], list[int]]:
    rows, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line, object_pairs_hook=_once))
            except ValueError as e:
                raise InputError(f"line {number} of {path} cannot be read as JSON: {e}") from e
            lines.append(number)
    return rows, lines


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, and raise if a name occurs twice, because the first value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return found


def rows_as_table(
    source: str,
    kind: str,
    rows: Sequence[dict[str, Any]],
    lines: Sequence[int],
    folder: Path | Sequence[Path],
    notes: tuple[str, ...] = (),
) -> Table:
    """Build a table of rows. Columns that a row lacks are missing values.

    Args:
        source: Path of the data set.
        kind: See `Table`.
        rows: At least one row.
        lines: Line number of each row in the file; empty if unknown.
        folder: Folder at which relative paths start, one for all rows or one per row.
        notes: See `Table`.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row.get(name) for row in rows] for name in names}
    return Table(
        source,
        kind,
        {name: _column(column) for name, column in values.items()},
        len(rows),
        lambda name: values[name],
        lambda name, i: values[name][i],
        lambda i: folder if isinstance(folder, Path) else folder[i],
        lambda i: f"{source}[{i}]" + (f" (line {lines[i]})" if lines else ""),
        notes=notes,
    )


def _column(values: Sequence[Any]) -> Column:
    types = {type(value) for value in values if value is not None}
    kind: Kind = "other"
    if types <= {str}:
        kind = "text"
    elif types == {int}:
        kind = "integer"
    elif types == {list} and any(value and isinstance(value[0], list) for value in values if value is not None):
        kind = "pixels"
    told = " and ".join(sorted(_WORDS.get(type_, type_.__name__) for type_ in types))
    return Column(kind, told)


_WORDS = {str: "text", int: "whole numbers", float: "fractions", bool: "true or false", list: "lists", dict: "objects"}
