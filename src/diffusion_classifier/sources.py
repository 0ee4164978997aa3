"""Labelled images where they lie: folders, tables, webdataset shards, IDX files, or a data set of the hub.

Nothing is decoded here: an image is what `images.load_image` takes, and is read when it is asked for.

Shape legend: M images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from .columns import check_columns, columns_of, images_of, load_table, only_column, read_beside
from .exceptions import InputError
from .folders import read_folder
from .idx import is_idx_folder, read_idx_folder
from .images import ImageSource
from .prompts import parse_labels
from .spec import RunSpec
from .splits import counted, folder_kind, has_metadata, listed

_LABEL_COLUMNS = ("label", "cls", "class")  # where no column is declared to hold labels
_CAPTION_COLUMNS = ("text", "caption")
_PATH_COLUMNS = ("image", "path", "file", "file_name", "filename")  # nor one to hold images


@dataclass(frozen=True)
class Source:
    """Labelled images.

    Args:
        name: what was opened.
        class_names: one per class, in the data set's own order where it has one, else sorted.
        labels: (M,), indices into class_names; -1 where the class is not known.
        ids: M different names: paths and keys where the data set has them, else positions.
        read: image i, as `load_image` takes it; b"" where there is none.
        templates: of prompts, with {} for the name, where the data set comes with some.
        shift: by which the images are changed, if they are; see `shifts`.
        notes: sentences about files that were left out and choices that were made in reading the data.
    """

    name: str
    class_names: tuple[str, ...]
    labels: tuple[int, ...]
    ids: tuple[str, ...]
    read: Callable[[int], ImageSource]
    templates: tuple[str, ...] = ()
    shift: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, i: int) -> str | None:
        """Class of image i, if it is known."""
        return self.class_names[self.labels[i]] if self.labels[i] >= 0 else None

    def take(self, rows: Sequence[int]) -> Source:
        """Those of its images."""
        return replace(
            self, labels=tuple(self.labels[i] for i in rows), ids=tuple(self.ids[i] for i in rows),
            read=lambda i: self.read(rows[i]),
        )  # fmt: skip

    def refuse_other(self, spec: RunSpec, run: Path) -> None:
        """Complain if a run, which is in that folder, is of other images.

        Raises:
            InputError: it is.
        """
        if self.fingerprint() != spec.data:
            raise InputError(f"{self.name} is not the data set of {run}, which was {spec.source}: say where that is")

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


def open_source(
    source: str,
    *,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    allow_incomplete: bool = False,
) -> Source:
    """Labelled images of a data set.

    Args:
        source: a folder of IDX files; a folder with one sub-folder of images per class; a Parquet or CSV file; a
            folder of Parquet files or webdataset shards; or the id of a data set on the hub. In a CSV file images are
            paths from its folder. Beside webdataset shards class names may be in classnames.txt, one a line, and
            templates in zeroshot_classification_templates.txt, with {c} for the name.
        split: "train", "test" …; for IDX files `train-…` and `t10k-…`. If None the only one, or "test".
        image_column: where the images are; the only image column if None.
        label_column: where the labels are; the only class-label column if None.
        class_names: replaces the data set's own names, one for each; or the classes of images that have no labels.
            For labels that are numbers, as those of IDX files, there may be more names than labels that occur.
        allow_incomplete: leave out images that are in no folder of a class, with a note.

    Raises:
        InputError: the data cannot be read as labelled images.
    """
    folder = Path(source)
    if is_idx_folder(folder):
        found = _read_idx(source, split, class_names)
    elif _is_image_folder(folder):
        found = _read_images(source, split, image_column, label_column, class_names, allow_incomplete)
    else:
        found = _read_table(source, split, image_column, label_column, class_names)
    return found if class_names is None else renamed(found, class_names)


@dataclass(frozen=True)
class Captioned:
    """Images, each with a text that describes it.

    Args:
        name: what was opened.
        captions: M.
        read: image i, as `load_image` takes it; b"" where there is none.
        notes: as in `Source`.
    """

    name: str
    captions: tuple[str, ...]
    read: Callable[[int], ImageSource]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)


def open_captioned(
    source: str, *, split: str | None = None, image_column: str | None = None, caption_column: str | None = None
) -> Captioned:
    """Images and captions of a data set.

    Args:
        source: a folder of images with a metadata.csv, metadata.jsonl or metadata.parquet that has the columns
            file_name and text; or what `open_source` takes but IDX files.
        split: as in `open_source`.
        image_column: as in `open_source`.
        caption_column: where the captions are; "text" or "caption" if None.

    Raises:
        InputError: the data cannot be read as captioned images, or an image has no caption.
    """
    import datasets

    table, _ = load_table(source, split)
    features = table.features
    caption_column = caption_column or next((name for name in _CAPTION_COLUMNS if name in features), "text")
    image_column = image_column or only_column(features, datasets.Image, _PATH_COLUMNS, source, "image")
    check_columns(source, features, (caption_column, image_column))
    captions = table[caption_column][:]
    for i, caption in enumerate(captions):
        if not isinstance(caption, str) or not caption.strip():
            raise InputError(f"{source}[{i}] has no caption: column {caption_column!r} holds {caption!r}")
    folder = Path(source).parent if Path(source).is_file() else Path(source)
    return Captioned(source, tuple(captions), images_of(table, image_column, folder, source)[0])


def is_captioned(source: str, split: str | None = None) -> bool:
    """Whether a data set's images have captions and no labels."""
    import datasets

    if is_idx_folder(Path(source)) or _is_image_folder(Path(source)):
        return False
    features = load_table(source, split)[0].features
    labels = [n for n, f in features.items() if isinstance(f, datasets.ClassLabel) or n in _LABEL_COLUMNS]
    return not labels and any(name in features for name in _CAPTION_COLUMNS)


def renamed(source: Source, class_names: Sequence[str]) -> Source:
    """The same images with other names for their classes.

    Raises:
        InputError: not one for each, one twice, or the same names in another order.
    """
    if set(class_names) == set(source.class_names) and tuple(class_names) != source.class_names:
        raise InputError(
            f"the class names that were given are those of {source.name} in another order, which would exchange "
            f"labels: they are {', '.join(source.class_names)}"
        )
    if len(class_names) != len(source.class_names):
        raise InputError(
            f"{len(class_names)} class names were given for the {len(source.class_names)} classes of {source.name}"
        )
    return replace(source, class_names=tuple(parse_labels(class_names)))


def _positions(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def _is_image_folder(folder: Path) -> bool:
    """Tell whether a folder holds images, and nothing that describes them."""
    return folder.is_dir() and folder_kind(folder) == "imagefolder" and not has_metadata(folder)


def _read_idx(source: str, split: str | None, class_names: Sequence[str] | None) -> Source:
    """Images of IDX files. Names count the labels from 0, unless there are as many as labels that occur in any split.

    Raises:
        InputError: as `read_idx_folder`; there are fewer names than labels.
    """
    images, labels, known, notes = read_idx_folder(Path(source), split)
    names = class_names or [str(i) for i in range(known[-1] + 1)]
    index = dict(zip(known, range(len(known)), strict=True)) if len(names) == len(known) else {i: i for i in known}
    if known[-1] >= len(names):
        if len(names) != len(known):
            raise InputError(
                f"{len(names)} class names were given for the {len(known)} classes of {source}, whose labels are "
                f"{known[0]} to {known[-1]}: give one for each, or {known[-1] + 1}"
            )
        notes = (*notes, f"the labels of {source} do not count from 0: {known[0]} is called {names[0]!r}, and so on")
    rows = tuple(index[label] for label in labels.tolist())
    there = set(rows)
    if missing := [name for i, name in enumerate(names) if i not in there]:
        what = counted(missing, "class has", "classes have")
        notes = (*notes, f"{what} no images and can be predicted all the same: {listed(missing)}")
    return Source(source, tuple(names), rows, _positions(len(rows)), images.__getitem__, notes=notes)


def _read_images(
    source: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    class_names: Sequence[str] | None,
    allow_incomplete: bool,
) -> Source:
    """Images in folders that are their classes."""
    folder = read_folder(source, split, allow_incomplete=allow_incomplete)
    check_columns(source, ("image", "label"), filter(None, (image_column, label_column)))
    names = folder.class_names
    if not names:
        if class_names is None:
            raise InputError(
                f"{source} must have at least two sub-folders, one a class, with images right in them; of images "
                "whose classes are not known, say which they may be of, --class-names"
            )
        names = tuple(class_names)
    root = Path(source).resolve()
    ids = tuple(map(str, folder.files))
    return Source(source, names, folder.labels, ids, lambda i: str(root / ids[i]), notes=folder.notes)


def _read_table(
    source: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    class_names: Sequence[str] | None,
) -> Source:
    import datasets

    path = Path(source)
    table, _ = load_table(source, split)
    features = table.features
    image_column = image_column or only_column(features, datasets.Image, _PATH_COLUMNS, source, "image")
    folder = path.parent if path.is_file() else path
    beside: dict[str, tuple[str, ...]] = {}
    known = label_column is not None or columns_of(features, datasets.ClassLabel, _LABEL_COLUMNS)
    if class_names is not None and not known:
        check_columns(source, features, (image_column,))
        labels, names = (-1,) * len(table), tuple(class_names)
    else:
        label_column = label_column or only_column(features, datasets.ClassLabel, _LABEL_COLUMNS, source, "label")
        check_columns(source, features, (image_column, label_column))
        if not isinstance(features[label_column], datasets.ClassLabel | datasets.Value):
            raise InputError(f"column {label_column!r} of {source} does not hold labels, but {features[label_column]}")
        beside = {} if path.suffix.lower() == ".csv" else read_beside(source, folder, features[label_column])
        labels, names = _labels(table[label_column][:], features[label_column], beside.get("names"), source)
    read, keys = images_of(table, image_column, folder, source)
    keys = table["__key__"][:] if "__key__" in features else keys
    return Source(source, names, labels, distinct(keys), read, beside.get("templates", ()))


def distinct(names: Sequence[str | None]) -> tuple[str, ...]:
    """The names, if every image has one of its own; else positions."""
    known = [name for name in names if name]
    return tuple(known) if len(set(known)) == len(names) else _positions(len(names))


def _labels(
    values: Sequence[Any], feature: Any, names: tuple[str, ...] | None, source: str
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Class indices (M,) and names, in the order of the data set if it states one, else sorted."""
    names = tuple(getattr(feature, "names", None) or names or ())
    for i, value in enumerate(values):
        if value is None or (names and value < 0):  # a ClassLabel marks what has no label by -1
            raise InputError(f"{source}[{i}] has no label")
        if names and value >= len(names):
            raise InputError(f"{source}[{i}] has the label {value}, and there are names for {len(names)} classes")
    if names:
        return tuple(values), names
    index = {value: i for i, value in enumerate(sorted(set(values)))}
    return tuple(index[value] for value in values), tuple(map(str, index))
