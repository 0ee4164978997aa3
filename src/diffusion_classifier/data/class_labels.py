"""Labels of a table as class indices and names; class names in files beside the images."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .dataset_columns import Table, short
from .splits import counted, listed, split_of
from .text_tables import read_names

_NAMES, _TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
_WORDS = ("label_text", "label_name", "class_name")
"""Names of columns that often hold the class name beside a numeric label."""
_SPACES = f"{string.whitespace}\u00a0\u3000\ufeff"
"""Characters stripped from labels. The byte order mark is included because other tools leave it in a first label."""
_WHOLE = re.compile(r"-?(0|[1-9]\d*)")
"""Canonical integers; 007 and 1.0 are text."""


def read_labels(
    table: Table,
    column: str,
    *,
    names: Sequence[str] = (),
    given: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    """Return labels (M,), class names, and notes.

    Text labels are class names, in alphabetic order. Integer labels are indices into the names if there are names;
    otherwise they are classes in numeric order. An empty label or a negative number means no label, and becomes -1.

    Args:
        table: Table of the images.
        column: Column of the labels.
        names: Names for integer labels, if the column declares none.
        given: The user's own names, one per class; some may not occur.
        allow_missing: Accept images without a label.

    Raises:
        InputError: The column does not hold labels; an image has no label while others do; no image has a label and
            no names are given; or a number has no name.
    """
    kind, told = table.columns[column].kind, table.columns[column].type
    if kind not in ("text", "bytes", "integer"):
        some = next((value for value in table.values(column) if value is not None), None) if kind == "other" else None
        advice = "save whole numbers as such" if isinstance(some, float) else "save each label as one text"
        raise InputError(
            f"column {column!r} of {table.source} does not hold labels, which are text or whole numbers, but {told}"
            + ("" if some is None else f", such as {short(some)}: {advice}")
        )
    values, notes = (table.values(column), ()) if kind == "integer" else _texts(table, column)
    numbers = all(isinstance(value, int) or value is None for value in values)
    values = [None if numbers and value is not None and value < 0 else value for value in values]
    known = {value for value in values if value is not None}
    if not known:
        return _hidden(table, column, given)
    if None in values and not allow_missing:
        i, others = values.index(None), values.count(None) - 1
        raise InputError(
            f"{table.row(i)} has no label ({short(table.values(column)[i])} in column {column!r})"
            + (f", and neither have {others} others of {len(values)}" if others else "")
        )
    names = tuple(table.columns[column].names or (names if numbers else ()))
    if names:
        index = {n: n for n in range(len(names))}
        if strange := known - index.keys():
            i = next(i for i, value in enumerate(values) if value in strange)
            raise InputError(f"{table.row(i)} has the label {values[i]}, and there are names for {len(names)} classes")
        shown = given if given is not None and len(given) == len(names) else names
        if unused := [name for n, name in enumerate(shown) if n not in known]:
            what = counted(unused, "class has", "classes have")
            notes += (f"{what} no images and can be predicted all the same: {listed(unused)}",)
    elif numbers and given is not None:
        names, index, more = index_names(known, given, table.source)
        notes += more
    else:
        distinct = _in_order(known, table.source, given)
        names, index = tuple(map(str, distinct)), {value: i for i, value in enumerate(distinct)}
        if numbers and (words := [name for name in _WORDS if name in table.columns and name != column]):
            notes += (
                f"class names of {table.source} are the numbers in column {column!r}: use --label-column "
                f"{words[0]} for the names in that column",
            )
    return tuple(-1 if value is None else index[value] for value in values), names, notes


def index_names(
    known: Collection[int], given: Sequence[str], source: str
) -> tuple[tuple[str, ...], dict[int, int], tuple[str, ...]]:
    """Assign given names to integer labels: return all names, the index of each label, and notes.

    With one name per label that occurs, names follow the numeric order. With more names, labels are indices into them.

    Raises:
        InputError: There are fewer names than labels, a label has no name, or the names are labels in another order.
    """
    names, in_order = tuple(given), sorted(known)
    top = in_order[-1]
    if len(names) == len(known):
        index = {n: i for i, n in enumerate(in_order)}
        labels = ", ".join(map(str, in_order[:3]))
        told = f"labels of {source} are {labels} …: label {in_order[0]} is named {names[0]!r}"
        notes = (told,) if top >= len(names) else ()
    elif top < len(names):
        index = {n: n for n in in_order}
        notes = (f"{len(names) - len(known)} of the class names have no image in {source}: labels are indices from 0",)
    else:
        raise InputError(
            f"{len(names)} class names were given for the {len(known)} classes of {source}, whose labels are "
            f"{in_order[0]} to {top}: give one per class, or {top + 1}"
        )
    if exchanged := [n for n, i in index.items() if str(n) in names and names[i] != str(n)]:
        raise InputError(
            f"the given class names are labels of {source} in another order: label {exchanged[0]} would be named "
            f"{names[index[exchanged[0]]]}"
        )
    return names, index, notes


def note_capitals(names: Sequence[str]) -> tuple[str, ...]:
    """Return a note for each class whose name differs from an earlier one in capitals only."""
    folded: dict[str, str] = {}
    return tuple(
        f"the classes {same!r} and {name!r} differ in capitals only, and are two classes; a model that ignores "
        "capitals cannot tell them apart"
        for name in names
        if (same := folded.setdefault(name.casefold(), name)) != name
    )


def _in_order(known: Collection[Any], source: str, given: Sequence[str] | None) -> list[Any]:
    """Sort classes: numerically if all are numbers, such as 01, 02, 10, else as text."""
    if not all(isinstance(value, str) and value.isdecimal() for value in known):
        return sorted(known)
    if given is not None and len({int(value) for value in known}) < len(known):
        raise InputError(
            f"{source} has labels with the same number, such as 01 and 1, so class names cannot be assigned by order"
        )
    return sorted(known, key=lambda value: (int(value), value))


def _hidden(
    table: Table, column: str, given: Sequence[str] | None
) -> tuple[tuple[int, ...], tuple[str, ...], tuple[str, ...]]:
    told = f"the labels of {table.source} are hidden: column {column!r} holds {short(table.values(column)[0])} only"
    if given is None:
        raise InputError(
            f"{told}; take another split, or give the names of all classes, --class-names, to classify images without "
            "labels"
        )
    return (-1,) * len(table), tuple(given), (f"{told}: its images are used without labels",)


def _texts(table: Table, column: str) -> tuple[list[Any], tuple[str, ...]]:
    """Return stripped labels in Unicode form NFC, None for empty ones, and integers if all labels are integers."""
    written = table.texts(column)
    texts = [None if text is None else unicodedata.normalize("NFC", text.strip(_SPACES)) or None for text in written]
    spelling: dict[str, str] = {}
    for text, label in zip(written, texts, strict=True):
        if label is not None and text is not None and spelling.setdefault(label, text) != text:
            raise InputError(
                f"two labels of {table.source} look the same, {spelling[label]!a} and {text!a}: they differ only "
                "in spaces or Unicode form; use one spelling"
            )
    changed = [text for label, text in spelling.items() if label != text]
    notes: tuple[str, ...] = ()
    if changed:
        notes = (
            f"{len(changed)} labels of {table.source} are read without surrounding spaces and in Unicode form NFC, "
            f"such as {changed[0]!a}",
        )
    if all(text is None or _WHOLE.fullmatch(text) for text in texts):
        return [None if text is None else int(text) for text in texts], notes
    return list(texts), notes


def read_beside(table: Table, column: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Read class names and templates from the files that CLIP benchmark puts beside the images; also return notes.

    Raises:
        InputError: A file is malformed, or cannot be downloaded.
    """
    if table.kind not in ("parquet", "webdataset", "hub") or table.columns[column].names:
        return (), (), ()
    if table.columns[column].kind == "text" and table.kind != "webdataset":
        return (), (), ()
    found: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()
    for name in (_NAMES, _TEMPLATES):
        file = _file_beside(table.source, name)
        if file is not None:
            found[name] = read_names(file)
            notes += (f"class names are those in {file}",) if name == _NAMES else ()
    templates = []
    for line, text in enumerate(found.get(_TEMPLATES, ()), 1):
        template = text.replace("{c}", "{}")
        if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
            raise InputError(
                f"line {line} of {_TEMPLATES} of {table.source} must hold {{c}} once, for the name: {text!r}"
            )
        templates.append(template)
    return found.get(_NAMES, ()), tuple(templates), notes


def _file_beside(source: str, name: str) -> Path | None:
    """Return the file in the folder, or in its parent if the folder is a split."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if (path := Path(source)).exists():
        folder = path.parent if path.is_file() else path
        places = [folder, folder.resolve().parent] if split_of(folder.resolve().name) else [folder]
        return next((place / name for place in places if (place / name).is_file()), None)
    try:
        return Path(hf_hub_download(source, name, repo_type="dataset"))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise InputError(f"{name} of {source} cannot be downloaded: {e}") from e
