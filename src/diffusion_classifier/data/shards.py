"""Webdataset shards, read in place: tar archives of samples, whose members share a key and differ in suffix."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from .dataset_columns import Column, Table, decoded
from .file_sets import check_complete

_IMAGES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "jp2",
     "avif", "heic", "heif", "ico")
)  # fmt: skip
_TEXTS = frozenset(("cls", "cls2", "txt", "text", "caption", "transcript", "id", "index", "inx"))
_MERGED = "image"
"""Name of the image column if the images have several suffixes."""


@dataclass(frozen=True)
class _Member:
    """Position of a member in an archive."""

    tar: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def open_shards(source: str, files: Sequence[Path], allow_incomplete: bool, notes: tuple[str, ...] = ()) -> Table:
    """Open archives as one table: one row per sample, one column per suffix in lower case.

    If each sample has one image, and their suffixes differ, the column is called "image".

    Raises:
        InputError: An archive cannot be read, is truncated, or has a file twice; or there is no sample.
    """
    samples: list[tuple[str, dict[str, _Member]]] = []
    strange: list[str] = []
    for file in files:
        members, problem = _members(file)
        notes += check_complete([problem] if problem else [], allow_incomplete)
        of_file: dict[str, dict[str, _Member]] = {}
        for name, member in members.items():
            match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", name)
            if match is None or "__MACOSX/" in name:
                strange.append(f"{name} of {file}")
                continue
            sample = of_file.setdefault(match[1], {})
            if (field := match[2].lower()) in sample:
                raise InputError(f"the sample {match[1]!r} of {file} has two files .{field}")
            sample[field] = member
        samples += of_file.items()
    if not samples:
        raise InputError(f"{source} holds no webdataset samples, which are files such as 000.jpg and 000.cls")
    if strange:
        notes += (f"{len(strange)} files in archives belong to no sample and are ignored, such as {strange[0]}",)
    rows = [row for _, row in samples]
    _merge_images(rows)
    columns = {field: _column(field) for field in dict.fromkeys(field for row in rows for field in row)}
    keys = [key for key, _ in samples]

    def row(i: int) -> str:
        return f"{source}[{i}] ({keys[i]})"

    def values(name: str) -> list[Any]:
        found: list[Any] = []
        for i, members in enumerate(rows):
            member = members.get(name)
            if member is None or columns[name].kind == "image":
                found.append(None)
            elif columns[name].kind == "text":
                found.append(decoded(member.read(), f"{row(i)}, .{name},").strip("\r\n"))
            else:
                found.append(member.read())
        return found

    def cell(name: str, i: int) -> Any:
        member = rows[i].get(name)
        content = None if member is None else member.read()
        return {"bytes": content or b"", "path": None} if columns[name].kind == "image" else content

    return Table(
        source, "webdataset", columns, len(rows), values, cell, lambda _: Path(source), row, tuple(keys), notes
    )


def _column(field: str) -> Column:
    suffix = field.rpartition(".")[2]
    if suffix in _IMAGES or field == _MERGED:
        return Column("image", "images", declared=True)
    return Column("text", "text") if suffix in _TEXTS else Column("bytes", f"files .{field}")


def _merge_images(rows: Sequence[dict[str, _Member]]) -> None:
    images = [{field for field in row if field.rpartition(".")[2] in _IMAGES} for row in rows]
    if max(map(len, images)) == 1 < len(set().union(*images)):
        for row, fields in zip(rows, images, strict=True):
            if fields:
                row[_MERGED] = row.pop(fields.pop())


def _members(file: Path) -> tuple[dict[str, _Member], str]:
    """Return the members of an archive by name, and a sentence if its end is damaged, otherwise ""."""
    found: dict[str, _Member] = {}
    size = file.stat().st_size
    try:
        with tarfile.open(file, "r:") as tar:
            try:
                for info in tar:
                    name = info.name
                    if info.isdir() or any(part.startswith(".") and part != "." for part in name.split("/")):
                        continue
                    if info.issym() or info.islnk():
                        goal = info.linkname if info.islnk() else posixpath.join(posixpath.dirname(name), info.linkname)
                        if goal not in found:
                            raise InputError(
                                f"{name} of {file} is a link to {info.linkname}, which does not precede it"
                            )
                        member = found[goal]
                    elif info.isreg():
                        member = _Member(file, info.offset_data, info.size)
                    else:
                        raise InputError(f"{name} of {file} is neither a file nor a folder")
                    if member.offset + member.size > size:
                        return found, f"{file} is cut off, within {name}"
                    if name in found:
                        raise InputError(f"{file} holds {name} twice")
                    found[name] = member
            except tarfile.ReadError:
                if not found:
                    raise
                return found, f"{file} is cut off, after {next(reversed(found))}"
            end = tar.offset
    except (OSError, tarfile.TarError) as e:
        with file.open("rb") as opened:
            packed = opened.read(2) == b"\x1f\x8b"
        told = "it is compressed: unpack it first, for example with gunzip" if packed else e
        raise InputError(f"{file} cannot be read as a tar archive: {told}") from e
    with file.open("rb") as opened:
        opened.seek(end)
        if not (block := opened.read(512)):
            return found, f"{file} is cut off: it has no end-of-archive mark"
        while block:
            if block.strip(b"\0"):
                return found, f"{file} is cut off, or several archives were joined: data follows its end"
            block = opened.read(1 << 20)
    return found, ""
