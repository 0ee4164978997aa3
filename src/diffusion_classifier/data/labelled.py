"""Labelled images where they lie: folders, tables, webdataset shards, IDX files, or a data set of the hub.

Nothing is decoded here: an image is what `images.load_image` takes, and is read when it is asked for.

Shape legend: M images.
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
from .splits import counted, folder_kind, has_metadata, listed
from .table_files import load_table

_LABEL_COLUMNS = ("label", "cls", "class")  # where no column is declared to hold labels
_CAPTION_COLUMNS = ("text", "caption")
_PATH_COLUMNS = ("image", "path", "file", "file_name", "filename")  # nor one to hold images


@dataclass(frozen=True)
class LabelledSource:
    """Labelled images.

    Args:
        name: what was opened.
        class_names: K different names, in the data set's own order where it has one, else sorted.
        labels: (M,), indices into class_names; -1 where the class is not known.
        ids: M different names: paths and keys where the data set has them, else positions.
        read: image i, as `load_image` takes it; b"" where there is none.
        templates: of prompts, with {} for the name, where the data set comes with some.
        shift: by which the images are changed, if they are; see `shifts`.
        prompt_names: K, what stands for each class in a prompt, where that is not its name; () if it is.
        notes: sentences about files that were left out and choices that were made in reading the data.
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
        """Class of image i, if it is known."""
        return self.class_names[self.labels[i]] if self.labels[i] >= 0 else None

    def take(self, rows: Sequence[int]) -> LabelledSource:
        """Those of its images."""
        return replace(
            self, labels=tuple(self.labels[i] for i in rows), ids=tuple(self.ids[i] for i in rows),
            read=lambda i: self.read(rows[i]),
        )  # fmt: skip

    def labelled(self) -> Self:
        """Itself.

        Raises:
            InputError: the classes of its images are not known.
        """
        if -1 in self.labels:
            raise InputError(f"the images of {self.name} have no labels, which are needed here")
        return self

    def fingerprint(self) -> str:
        """SHA-256 of class names, ids, labels and shift: the same wherever the data set lies."""
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
    """Labelled images of a data set.

    Args:
        source: a folder of IDX files; a folder with one sub-folder of images per class, or with a metadata.csv,
            metadata.jsonl or metadata.parquet; a file of Parquet, CSV, tab-separated values (.tsv), JSON (a list of
            objects) or JSON Lines; a folder of Parquet files or webdataset shards; or the id of a data set on the hub.
            Paths of images begin at the file's folder. Labels are text as written, or whole numbers. Beside shards
            class names may be in classnames.txt, one a line, and templates in zeroshot_classification_templates.txt,
            with {c} for the name; if the folder is that of a split, in the one above, too.
        split: "train", "test" …; for IDX files `train-…` and `t10k-…`. If None the only one, or "test".
        image_column: where the images are; if None "image", else the only column that holds some.
        label_column: where the labels are; if None "label", else the only one that is declared to hold classes or
            called as usual.
        class_names: replaces the data set's own names, one for each; or the classes of images that have no labels.
            Where labels are whole numbers that no name is stated for, they count these, of which some may not occur.
        allow_incomplete: read what is there where shards are missing or cut off, and leave out images that have no
            label, that metadata.csv does not list, or that lie beside the folders of classes; each is noted.

    Raises:
        InputError: the data cannot be read as labelled images, or is incomplete.
    """
    folder = Path(source)
    if is_idx_folder(folder):
        found = _read_idx(source, split, class_names)
    elif _is_image_folder(folder):
        found = _read_images(source, split, image_column, label_column, class_names, allow_incomplete)
    else:
        found = _read_table(source, split, image_column, label_column, class_names, allow_incomplete)
    found = with_distinct_names(found) if class_names is None else renamed(found, class_names)
    return replace(found, notes=(*found.notes, *note_capitals(found.class_names)))


@dataclass(frozen=True)
class TextSource:
    """Images, each with a text that describes it.

    Args:
        name: what was opened.
        captions: M.
        read: image i, as `load_image` takes it; b"" where there is none.
        notes: as in `LabelledSource`.
    """

    name: str
    captions: tuple[str, ...]
    read: Callable[[int], ImageSource]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)


def open_texts(
    source: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    allow_incomplete: bool = False,
) -> TextSource:
    """Images and captions of a data set.

    Args:
        source: a folder of images with a metadata.csv, metadata.jsonl or metadata.parquet that has the columns
            file_name and text; or what `open_labelled` takes but IDX files.
        split: as in `open_labelled`.
        image_column: as in `open_labelled`.
        caption_column: where the captions are; "text" or "caption" if None.
        allow_incomplete: as in `open_labelled`.

    Raises:
        InputError: the data cannot be read as captioned images, or an image has no caption.
    """
    table = load_table(source, split, allow_incomplete)
    columns = table.columns
    caption_column = caption_column or next((name for name in _CAPTION_COLUMNS if name in columns), "text")
    image_column = image_column or only(image_columns(table, _PATH_COLUMNS), table, "image")
    check_columns(source, columns, (caption_column, image_column))
    captions = table.texts(caption_column)
    for i, caption in enumerate(captions):
        if caption is None or not caption.strip():
            raise InputError(f"{table.row(i)} has no caption: column {caption_column!r} holds {caption!r}")
    return TextSource(source, tuple(map(str, captions)), images_of(table, image_column)[0], table.notes)


def is_captioned(source: str, split: str | None = None, allow_incomplete: bool = False) -> bool:
    """Whether a data set's images have captions and no labels; arguments as in `open_labelled`."""
    if is_idx_folder(Path(source)) or _is_image_folder(Path(source)):
        return False
    table = load_table(source, split, allow_incomplete)
    return not label_columns(table, _LABEL_COLUMNS) and any(name in table.columns for name in _CAPTION_COLUMNS)


def renamed(source: LabelledSource, class_names: Sequence[str]) -> LabelledSource:
    """The same images with other names for their classes.

    Raises:
        InputError: not one for each, one twice, or one that is, but for capitals, the name of another class.
    """
    if set(source.class_names) < set(class_names):  # some of which do not occur
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
    """Return the source with a name of its own for each class: of those that share one, each with its index.

    Two pairs of ImageNet's thousand classes share a name: "missile" and "sunglasses". Prompts keep the shared name.

    Raises:
        InputError: another class already has the name that is made.
    """
    names = source.class_names
    unique = tuple(distinct_names(names, cased=True))
    if unique == names:
        return source
    if len(set(unique)) < len(names):
        raise InputError(f"{source.name} has several classes of one name, and one more that is called as they would be")
    apart = ", ".join(new for new, old in zip(unique, names, strict=True) if old != new)
    note = f"class names that several classes share are told apart by the index of the class: {apart}"
    return replace(source, class_names=unique, prompt_names=names, notes=(*source.notes, note))


def _positions(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _is_image_folder(folder: Path) -> bool:
    """Tell whether a folder holds images, and nothing that describes them."""
    return folder.is_dir() and folder_kind(folder) == "imagefolder" and not has_metadata(folder)


def _read_idx(source: str, split: str | None, class_names: Sequence[str] | None) -> LabelledSource:
    """Images of IDX files. The classes are the labels that occur in any split, or all numbers up to the largest."""
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
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    class_names: Sequence[str] | None,
    allow_incomplete: bool,
) -> LabelledSource:
    """Images in folders that are their classes."""
    folder = read_folder(source, split, allow_incomplete=allow_incomplete)
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
    root = Path(source).resolve()
    ids = tuple(map(str, folder.files))
    return LabelledSource(source, names, folder.labels, ids, lambda i: str(root / ids[i]), notes=folder.notes)


def _read_table(
    source: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    class_names: Sequence[str] | None,
    allow_incomplete: bool,
) -> LabelledSource:
    table = load_table(source, split, allow_incomplete)
    image_column = image_column or only(image_columns(table, _PATH_COLUMNS), table, "image")
    check_columns(source, table.columns, (image_column,))
    templates: tuple[str, ...] = ()
    notes = table.notes
    labelled = label_columns(table, _LABEL_COLUMNS)
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
    """The names, if every image has one of its own; else positions."""
    known = [name for name in names if name]
    return tuple(known) if len(set(known)) == len(names) else _positions(len(names))
