"""The files of a data set: the split of each, and a check that no shard is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from ..errors import InputError
from .splits import WORDS
from .splits import split_of as split_of_name

_MANY = 5
"""Number of missing shards that a message lists."""


def split_of(path: PurePath) -> str | None:
    """Return the split in the name of the outermost folder that has one, or in the file name; None if there is none."""
    for part in (*path.parts[:-1], path.stem):
        found = {WORDS[word] for word in re.split(r"[\W\d_]+", part.lower()) if word in WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def files_of_split(
    root: Path, files: Sequence[Path], split: str | None, allow_incomplete: bool
) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files of a split, and notes. If no name contains a split, all files belong to one split.

    Args:
        root: The folder of the data set.
        files: Files in it.
        split: Default: the only split, or "test".
        allow_incomplete: Leave out files without a split if others have one.

    Raises:
        InputError: The split does not exist, or a file has none.
    """
    found: dict[str | None, list[Path]] = {}
    for file in files:
        found.setdefault(split_of(file.relative_to(root)), []).append(file)
    strays = found.pop(None, [])
    wanted = None if split is None else WORDS.get(split, split)
    if not found:
        name = split_of_name(root.resolve().name) or "train"
        if wanted not in (None, name, "train"):  # "train" is the default of the training commands
            raise InputError(f"{root} has no split {split!r}: its only split is {name}")
        return strays, ()
    notes: tuple[str, ...] = ()
    if strays:
        splits = ", ".join(map(str, found))
        told = f"{len(strays)} files of {root} belong to none of its splits {splits}, such as {strays[0]}"
        if not allow_incomplete:
            raise InputError(f"{told}: move them elsewhere, or leave them out by --allow-incomplete")
        notes = (f"{told}: left out",)
    wanted = wanted or (next(iter(found)) if len(found) == 1 else "test")
    if wanted not in found:
        raise InputError(f"{root} has no split {split or wanted!r}; it has {', '.join(sorted(map(str, found)))}")
    return found[wanted], notes


def missing_shards(files: Sequence[Path]) -> list[str]:
    """Return one sentence for each problem with the shard numbers.

    Names such as train-00000-of-00003 must be complete and unique. Plain numbers must have no gap. A file nshards.txt
    must state the number of archives beside it.
    """
    stated: dict[tuple[Path, str], dict[int, list[int]]] = {}
    numbered: dict[tuple[Path, str], list[str]] = {}
    for file in files:
        if match := re.fullmatch(r"(.*?)(\d+)-of-(\d+).*", file.stem):
            stated.setdefault((file.parent, match[1]), {}).setdefault(int(match[3]), []).append(int(match[2]))
        elif match := re.fullmatch(r"(.*?)(\d+)", file.stem):
            numbered.setdefault((file.parent, match[1]), []).append(match[2])
    wrong = []
    for (folder, prefix), totals in stated.items():
        if len(totals) > 1:
            counts = " and of ".join(map(str, sorted(totals)))
            wrong.append(f"{folder} holds shards {prefix}… of {counts}: remove those of the older set")
            continue
        ((total, numbers),) = totals.items()
        if twice := sorted({n for n in numbers if numbers.count(n) > 1}):
            wrong.append(f"{folder} holds shard {prefix}{twice[0]:05} of {total:05} twice")
        start = 1 if total in numbers else 0
        wrong += _gaps(folder, prefix, sorted(set(range(start, start + total)).difference(numbers)), f" of {total}")
    for (folder, prefix), digits in numbered.items():
        there = sorted(map(int, digits))
        padded = any(text.startswith("0") and len(text) > 1 for text in digits)
        start = 0 if padded and there[0] > 1 else there[0]
        if len(digits) > 1:
            wrong += _gaps(folder, prefix, sorted(set(range(start, there[-1])).difference(there)), "")
    for folder in sorted({file.parent for file in files if file.suffix.lower() == ".tar"}):
        count = folder / "nshards.txt"
        there_are = sum(file.parent == folder for file in files)
        if count.is_file() and (stated_count := count.read_text("utf-8", "replace").strip()) != str(there_are):
            wrong.append(f"{folder} holds {there_are} shards, and its nshards.txt says {stated_count[:20]!r}")
    return wrong


def _gaps(folder: Path, prefix: str, missing: list[int], total: str) -> list[str]:
    if not missing:
        return []
    told = ", ".join(f"{prefix}{number}" for number in missing[:_MANY])
    return [f"{folder} lacks {len(missing)} shards{total}: {told}{' …' if len(missing) > _MANY else ''}"]


def check_complete(problems: Sequence[str], allow_incomplete: bool) -> tuple[str, ...]:
    """Raise if data is incomplete; return notes on the problems if that is allowed.

    Args:
        problems: One sentence each.
        allow_incomplete: Whether to use incomplete data.

    Raises:
        InputError: There is a problem, and `allow_incomplete` is False.
    """
    if problems and not allow_incomplete:
        raise InputError(f"{problems[0]}; use --allow-incomplete to read what is there")
    return tuple(f"{problem}: read without the rest" for problem in problems)
