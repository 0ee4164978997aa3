"""The table that all readers return, with the choice of its image and label columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from ..errors import InputError
from .images import ImageSource

Kind: TypeAlias = Literal["text", "bytes", "integer", "image", "pixels", "other"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
_CHECKED_ROWS = 8
"""Number of rows of pixel lists that are checked when a data set is opened."""


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        kind: "image" for contents of image files, paths, or both; "pixels" for nested lists of numbers.
        type: Name of the type, for messages.
        declared: Whether the file declares that the column holds images or classes.
        names: Declared class names.
    """

    kind: Kind
    type: str
    declared: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of a data set. Images are read on access.

    Args:
        source: Path or id of the data set, for messages.
        kind: Format: "hub", "metadata", "parquet", "webdataset" or "text".
        columns: Columns by name.
        num_rows: M.
        values: Returns the M values of a column, None for missing ones; paths for a column of kind "image".
        cell: Returns one value of a column. For kind "image", a dictionary with `bytes` and `path`, or None.
        folder: Returns the folder at which relative paths of row i start.
        row: Returns the name of row i for messages.
        keys: Names of the rows, if the data set has them.
        notes: See `LabelledSource`.
    """

    source: str
    kind: str
    columns: Mapping[str, Column]
    num_rows: int
    values: Callable[[str], list[Any]]
    cell: Callable[[str, int], Any]
    folder: Callable[[int], Path]
    row: Callable[[int], str]
    keys: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.num_rows

    def texts(self, name: str) -> list[str | None]:
        """Return the values of a text column, with None for missing ones.

        Raises:
            InputError: A value is not text, or is a list written as text.
        """
        texts: list[str | None] = []
        for i, value in enumerate(self.values(name)):
            text = decoded(value, f"{self.row(i)}, column {name!r}") if isinstance(value, bytes) else value
            if text is not None and not isinstance(text, str):
                raise InputError(f"{self.row(i)} has no text in column {name!r}, but {short(text)}")
            if text is not None:
                check_no_list(text, f"{self.row(i)}, column {name!r}")
            texts.append(text)
        return texts


def short(value: Any) -> str:
    """Return the value as text for a message, cut at 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def decoded(value: bytes, where: str) -> str:
    """Decode UTF-8 bytes, without a byte order mark.

    Raises:
        InputError: The bytes are not UTF-8.
    """
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(f"{where} is not text in UTF-8: {short(value)}") from e


def check_no_list(text: str, where: str) -> None:
    """Raise if a text is a list written as text by pandas or Python, such as "['a', 'b']".

    Raises:
        InputError: The text is such a list.
    """
    if re.fullmatch(r"\s*[\[({]\s*(['\"].*['\"]\s*,?\s*)?[\])}]\s*", text, re.DOTALL):
        raise InputError(f"{where} is a list written as text, {short(text)}: save the data as JSON Lines or Parquet")


def column_of(type_: pa.DataType, declared: Mapping[str, Any] | None = None) -> Column:
    """Return the column description of an Arrow type.

    Args:
        type_: The type; dictionaries and extensions count as their values' type.
        declared: Feature description of the library `datasets`.
    """
    told = str(type_)
    while isinstance(type_, pa.DictionaryType | pa.BaseExtensionType):
        type_ = type_.value_type if isinstance(type_, pa.DictionaryType) else type_.storage_type
    what = (declared or {}).get("_type")
    names = tuple((declared or {}).get("names") or ()) if what == "ClassLabel" else ()
    kind: Kind = "other"
    if (
        pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)
        or pa.types.is_null(type_)
    ):  # fmt: skip
        kind = "text"
    elif (
        pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_)
        or pa.types.is_fixed_size_binary(type_)
    ):  # fmt: skip
        kind = "bytes"
    elif pa.types.is_integer(type_):
        kind = "integer"
    elif pa.types.is_struct(type_) and {"bytes", "path"} & {field.name for field in type_.fields}:
        kind = "image"
    elif _is_list(type_) and _is_list(type_.value_type):
        inner = type_.value_type
        while _is_list(inner):
            inner = inner.value_type
        kind = "pixels" if pa.types.is_integer(inner) or pa.types.is_floating(inner) else "other"
    return Column(kind, told, declared=what in ("ClassLabel", "Image"), names=names)


def _is_list(type_: pa.DataType) -> bool:
    return isinstance(
        type_, pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.ListViewType | pa.LargeListViewType
    )


def check_columns(source: str, there: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise if a wanted column does not exist.

    Raises:
        InputError: A column does not exist.
    """
    there = list(there)
    for column in wanted:
        if column not in there:
            raise InputError(f"{source} has no column {column!r}; it has {', '.join(there)}")


def image_columns(table: Table, usual: Sequence[str]) -> list[str]:
    """Return the candidates for the image column: exactly one if the choice is clear.

    The first usual name is preferred, then columns that certainly hold images, then the other usual names.
    """
    columns = table.columns
    if usual[0] in columns and columns[usual[0]].kind not in ("integer", "other"):
        return [usual[0]]
    certain = [n for n, c in columns.items() if c.kind == "image" or (c.declared and not c.names)]
    return certain or [n for n in usual if n in columns and columns[n].kind not in ("integer", "other")]


def label_columns(table: Table, usual: Sequence[str]) -> list[str]:
    """Return the candidates for the label column: exactly one if the choice is clear.

    The first usual name is preferred, then the only column that has a usual name or is declared to hold classes.
    """
    declared = [name for name, column in table.columns.items() if column.names]
    named = [name for name in usual if name in table.columns]
    if named[:1] == [usual[0]]:
        return named[:1]
    both = [name for name in named if name in declared]
    return both if len(both) == 1 else list(dict.fromkeys([*declared, *named]))


def only(found: Sequence[str], table: Table, what: str) -> str:
    """Return the only candidate.

    Raises:
        InputError: There is no candidate, or there are several.
    """
    if len(found) != 1:
        raise InputError(
            f"{table.source} has {len(found)} {what} columns ({', '.join(found or table.columns)}); name one with "
            f"--{what}-column"
        )
    return found[0]


def images_of(table: Table, name: str) -> tuple[Callable[[int], ImageSource], list[str | None]]:
    """Return a function that reads an image of a column, and the name of each image, None if unknown.

    Raises:
        InputError: The column does not hold images.
    """
    column = table.columns[name]
    if column.kind == "text" and table.kind != "webdataset":  # its texts are not paths
        paths = table.texts(name)
        for i, path in enumerate(paths):
            if path and _URL.match(path):
                raise InputError(
                    f"{table.row(i)} has a URL instead of a path, {short(path)}: download the images first"
                )
        return lambda i: _file(table, i, paths[i]), paths
    if column.kind == "pixels":
        for i in range(min(_CHECKED_ROWS, len(table))):
            _check_pixels(_pixels(table.cell(name, i)), f"{table.row(i)}, column {name!r},")
        _check_range(table, name)
        return lambda i: _pixels(table.cell(name, i)), [None] * len(table)
    if column.kind == "bytes":
        return lambda i: table.cell(name, i) or b"", [None] * len(table)
    if column.kind != "image":
        raise InputError(f"column {name!r} of {table.source} cannot be read as images: it holds {column.type}")

    def read(i: int) -> ImageSource:
        item = table.cell(name, i) or {}
        content: bytes | None = item.get("bytes")
        return _file(table, i, item.get("path")) if content is None else content

    opened = Path(table.source)
    root = f"{(opened.parent if opened.is_file() else opened).resolve()}/"
    return read, [value and value.removeprefix(root) for value in table.values(name)]


def _file(table: Table, i: int, path: str | None) -> ImageSource:
    if not path:
        return b""
    return path if _URL.match(path) else table.folder(i) / path  # a URL is rejected when it is loaded


def _pixels(value: Any) -> ImageSource:
    """Return an array (H, W) or (H, W, C), as uint8 if its values are integers from 0 to 255."""
    if value is None:
        return b""
    try:
        array = np.array(value)
    except ValueError:  # rows of several lengths
        return np.array(value, dtype=object)
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array


def _check_pixels(image: ImageSource, where: str) -> None:
    if not isinstance(image, np.ndarray):
        return
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise InputError(
            f"{where} holds lists of shape {image.shape}; expected (height, width) or (height, width, channels)"
        )
    if image.dtype.kind in "iu" and image.dtype != np.uint8:
        raise InputError(f"{where} holds integers from {image.min()} to {image.max()}; pixels must be 0 to 255")


def _check_range(table: Table, name: str) -> None:
    """Raise if all integers are 0 or 1, because such images would look black."""
    some = [_pixels(table.cell(name, i)) for i in range(min(_CHECKED_ROWS, len(table)))]
    whole = [image for image in some if isinstance(image, np.ndarray) and image.dtype == np.uint8]
    if whole and max(int(image.max()) for image in whole) == 1:
        raise InputError(
            f"column {name!r} of {table.source} holds only 0 and 1, but pixels are 0 to 255: multiply them by "
            "255, or save them as floats in [0, 1]"
        )
