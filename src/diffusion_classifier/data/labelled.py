"""Labelled images in folders, tables, webdataset shards, IDX files, or a data set on the hub.

Images are read on access, in a form that `load_image` decodes.

Shape legend: K classes, M images.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ..errors import InputError
from .class_labels import index_names, note_capitals, read_beside, read_labels
from .dataset_columns import check_columns, image_columns, images_of, label_columns, only
from .idx import is_idx_folder, read_idx_folder
from .image_folders import read_folder
from .images import ImageSource
from .prompts import distinct_names, parse_labels
from .splits import Place, counted, is_image_folder, listed
from .table_files import load_table

LABEL_COLUMNS = ("label", "cls", "class")  # if no column is declared to hold classes
PATH_COLUMNS = ("image", "path", "file", "file_name", "filename")  # if no column holds images


@dataclass(frozen=True)
class LabelledSource:
    """Labelled images.

    Args:
        name: Path or id of the data set.
        class_names: (K,) different names, in the data set's own order if it has one, otherwise sorted.
        labels: (M,) indices into class_names; -1 for an unknown class.
        ids: (M,) different names: paths or keys if the data set has them, otherwise positions.
        read: Returns image i for `load_image`; b"" for a missing image.
        templates: Prompt templates that come with the data set, with {} for the class name.
        shift: Corruption of the images, such as "jpeg:3"; empty for none. See `corrupted`.
        prompt_names: (K,) class names for prompts. Those in class_names if empty.
        notes: Sentences on files that were left out and on choices that were made while reading.
    """

    name: str
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    ids: tuple[str, ...]
    read: Callable[[int], ImageSource]
    templates: tuple[str, ...] = ()
    shift: str = ""
    prompt_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, i: int) -> str | None:
        """Return the class name of image i, None if unknown."""
        return self.class_names[self.labels[i]] if self.labels[i] >= 0 else None

    def take(self, rows: Sequence[int]) -> LabelledSource:
        """Return a source of these images only."""
        return replace(
            self, labels=tuple(self.labels[i] for i in rows), ids=tuple(self.ids[i] for i in rows),
            read=lambda i: self.read(rows[i]),
        )  # fmt: skip

    def check_labelled(self) -> Self:
        """Return the source; raise if a label is unknown.

        Raises:
            InputError: The class of an image is unknown.
        """
        if -1 in self.labels:
            raise InputError(f"the images of {self.name} have no labels, which are needed here")
        return self

    def fingerprint(self) -> str:
        """Return the SHA-256 of class names, ids, labels and corruption, which does not depend on the location."""
        digest = hashlib.sha256()
        for values in (self.class_names, self.ids, map(str, self.labels)):
            digest.update("\0".join(values).encode() + b"\1")
        digest.update(self.shift.encode())
        return digest.hexdigest()


def open_labelled(
    source: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    allow_incomplete: bool = False,
) -> LabelledSource:
    """Open labelled images.

    Args:
        source: One of

            - a folder of IDX files,
            - a folder with one sub-folder of images per class, or with a metadata.csv, .jsonl or .parquet,
            - a file of Parquet, CSV, tab-separated values (.tsv), JSON (a list of objects) or JSON Lines,
            - a folder of Parquet files or webdataset shards,
            - the id of a data set on the hub.

            Relative paths of images start at the file's folder. Labels are text as written, or integers. A
            classnames.txt beside shards gives class names, one per line. A zeroshot_classification_templates.txt gives
            templates with {c} for the name. If the folder is a split, both may be in its parent.
        split: "train", "test" …; for IDX files `train-…` and `t10k-…`. Default: the only split, or "test".
        image_column: Column of the images. Default: "image", or the only column that holds images.
        label_column: Column of the labels. Default: "label", or the only column that is declared to hold classes or
            has another usual name.
        class_names: Names that replace the data set's, one per class; or the classes of images without labels. If
            labels are integers without declared names, they are indices into these, and some may not occur.
        allow_incomplete: Read the rest if shards are missing or truncated, or images have no label, are not listed
            in metadata.csv, or lie beside the class folders. Each case is noted.

    Raises:
        InputError: The data cannot be read as labelled images, or is incomplete.
    """
    folder = Path(source)
    if is_idx_folder(folder):
        found = _read_idx(source, split, class_names)
    elif is_image_folder(root := Place(folder)):
        found = _read_images(source, root, split, image_column, label_column, class_names, allow_incomplete)
    else:
        found = _read_table(source, split, image_column, label_column, class_names, allow_incomplete)
    found = with_distinct_names(found) if class_names is None else renamed(found, class_names)
    return replace(found, notes=(*found.notes, *note_capitals(found.class_names)))


def renamed(source: LabelledSource, class_names: Sequence[str]) -> LabelledSource:
    """Return the source with other class names.

    Raises:
        InputError: The number of names differs, a name occurs twice, or the names are the old ones in another order.
    """
    if set(source.class_names) < set(class_names):  # some classes do not occur
        place = [list(class_names).index(name) for name in source.class_names]
        labels = tuple(place[label] if label >= 0 else -1 for label in source.labels)
        return replace(source, class_names=tuple(parse_labels(class_names, cased=True)), labels=labels)
    if len(class_names) != len(source.class_names):
        raise InputError(
            f"{len(class_names)} class names were given for the {len(source.class_names)} classes of {source.name}"
        )
    for form in (str, str.casefold):  # as written, since names may differ in capitals alone, and without
        own, new = ([form(name.strip()) for name in names] for names in (source.class_names, class_names))
        if all(name not in own or name == old for name, old in zip(new, own, strict=True)):
            continue
        raise InputError(
            f"the class names that were given are those of {source.name} in another order, which would exchange "
            f"labels: they are {', '.join(source.class_names)}"
        )
    return replace(source, class_names=tuple(parse_labels(class_names, cased=True)), prompt_names=())


def with_distinct_names(source: LabelledSource) -> LabelledSource:
    """Append the class index to names that several classes share. Prompts keep the shared name.

    Two pairs of ImageNet's 1,000 classes share a name: "missile" and "sunglasses".

    Raises:
        InputError: A new name is already the name of another class.
    """
    names = source.class_names
    unique = tuple(distinct_names(names, cased=True))
    if unique == names:
        return source
    if len(set(unique)) < len(names):
        raise InputError(f"{source.name} has several classes of one name, and one more that is called as they would be")
    apart = ", ".join(new for new, old in zip(unique, names, strict=True) if old != new)
    note = f"class names that several classes share are followed by the index of the class: {apart}"
    return replace(source, class_names=unique, prompt_names=names, notes=(*source.notes, note))


def _positions(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _read_idx(source: str, split: str | None, class_names: Sequence[str] | None) -> LabelledSource:
    """Read IDX files. Classes are all numbers up to the largest label of any split, unless names are given."""
    images, labels, known, notes = read_idx_folder(Path(source), split)
    names, index = tuple(str(i) for i in range(known[-1] + 1)), {i: i for i in known}
    if class_names is not None:
        names, index, named = index_names(known, class_names, source)
        notes += named
    rows = tuple(index[label] for label in labels.tolist())
    there = set(rows)
    if missing := [name for i, name in enumerate(names) if i not in there]:
        what = counted(missing, "class has", "classes have")
        notes += (f"{what} no images and can be predicted all the same: {listed(missing)}",)
    return LabelledSource(source, names, rows, _positions(len(rows)), images.__getitem__, notes=notes)


def _read_images(
    source: str,
    root: Place,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    class_names: Sequence[str] | None,
    allow_incomplete: bool,
) -> LabelledSource:
    """Read a folder of class folders."""
    folder = read_folder(source, root, split, allow_incomplete=allow_incomplete)
    check_columns(source, ("image", "label"), filter(None, (image_column, label_column)))
    names = folder.class_names
    if not names:
        if class_names is None:
            raise InputError(
                f"{source} must have at least two sub-folders, one a class, with images right in them; of images "
                "whose classes are not known, say which they may be of, --class-names"
                + "".join(f"; {note}" for note in folder.notes)
            )
        names = tuple(class_names)
    where = root.path.resolve()
    ids = tuple(map(str, folder.files))
    return LabelledSource(source, names, folder.labels, ids, lambda i: str(where / ids[i]), notes=folder.notes)


def _read_table(
    source: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    class_names: Sequence[str] | None,
    allow_incomplete: bool,
) -> LabelledSource:
    table = load_table(source, split, allow_incomplete)
    image_column = image_column or only(image_columns(table, PATH_COLUMNS), table, "image")
    check_columns(source, table.columns, (image_column,))
    templates: tuple[str, ...] = ()
    notes = table.notes
    labelled = label_columns(table, LABEL_COLUMNS)
    if class_names is not None and label_column is None and not labelled:
        labels, names = (-1,) * len(table), tuple(class_names)
    else:
        label_column = label_column or only(labelled, table, "label")
        check_columns(source, table.columns, (label_column,))
        beside, templates, more = read_beside(table, label_column)
        labels, names, read_notes = read_labels(
            table, label_column, names=beside, given=class_names, allow_missing=allow_incomplete
        )
        notes += (more if names == beside and class_names is None else ()) + read_notes
    read, keys = images_of(table, image_column)
    keys = list(table.keys or keys)
    if None not in keys and len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        notes += (f"{source} names an image twice, such as {twice!r}: positions are used as ids",)
    found = LabelledSource(source, names, labels, distinct(keys), read, templates, notes=notes)
    lacking = labels.count(-1)
    if not 0 < lacking < len(labels):
        return found
    told = f"{lacking} of {len(labels)} images of {source} have no label and are skipped"
    return replace(found.take([i for i, label in enumerate(labels) if label >= 0]), notes=(*notes, told))


def distinct(names: Sequence[str | None]) -> tuple[str, ...]:
    """Return the names if all images have different ones, otherwise positions."""
    known = [name for name in names if name]
    return tuple(known) if len(set(known)) == len(names) else _positions(len(names))
