"""Images that each have several captions, one of them true: Winoground, and files like those of ARO and SugarCrepe.

Shape legend: M images.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ..errors import InputError
from .dataset_columns import Table, check_columns, check_no_list, images_of, short
from .images import MAX_EDGE, MAX_PIXELS, ImageError, ImageSource, load_image
from .labelled import distinct
from .table_files import load_table

WINOGROUND = "facebook/winoground"

_IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "path", "file")  # in the order of preference
_CAPTION_COLUMNS = ("true_caption", "caption")
_FALSE_COLUMNS = ("false_caption", "false_captions", "negative_caption", "negative_captions")
_TAG_COLUMNS = ("tag", "relation_name")
_BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")


@dataclass(frozen=True)
class CaptionedSource:
    """Images, each with several captions, one of them true.

    Args:
        name: Path or id of the data set.
        ids: (M,) different names; those of a pair are "17/0" and "17/1".
        captions: (M,), two or more different captions per image.
        truth: (M,) indices of the true captions.
        read: Returns image i for `load_image`; b"" for a missing image.
        tags: (M,) groups for which results are reported separately. None if empty.
        paired: Whether images 2e and 2e + 1 share two captions, one true of each.
        notes: See `LabelledSource`.

    Raises:
        InputError: The values contradict this description; the message names the image.
    """

    name: str
    ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    truth: tuple[int, ...]
    read: Callable[[int], ImageSource]
    tags: tuple[str, ...] = ()
    paired: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.ids)
        if not count or {len(self.captions), len(self.truth), len(self.tags) or count} != {count}:
            raise InputError(f"{self.name}: as many captions, truths and tags as images are needed, and an image")
        if len(set(self.ids)) < count:
            raise InputError(f"{self.name}: images need different names")
        for id_, captions, truth in zip(self.ids, self.captions, self.truth, strict=True):
            if len(captions) < 2:
                raise InputError(f"{self.name}: image {id_} has fewer than two captions to choose from")
            if "" in captions or not 0 <= truth < len(captions):
                raise InputError(f"{self.name}: image {id_} has an empty caption, or none that is true")
            if twice := [caption for caption in captions if captions.count(caption) > 1]:
                raise InputError(f"{self.name}: image {id_} has the caption {twice[0]!r} twice, true and false")
        if self.paired:
            self._check_pairs()

    def _check_pairs(self) -> None:
        if len(self) % 2:
            raise InputError(f"{self.name}: images come in pairs, and there are {len(self)}")
        for a in range(0, len(self), 2):
            captions = [self.captions[i] for i in (a, a + 1)]
            own = {captions[i][self.truth[a + i]] for i in (0, 1)}
            names = [id_.rpartition("/") for id_ in self.ids[a : a + 2]]
            if not len(own) == 2 == len(captions[0]) == len(captions[1]) or any(set(c) != own for c in captions):
                raise InputError(
                    f"{self.name}: images {self.ids[a]} and {self.ids[a + 1]} are no pair, which has the same two "
                    "captions, one true of each"
                )
            if names[0][0] != names[1][0] or [name[2] for name in names] != ["0", "1"]:
                raise InputError(f"{self.name}: images of a pair are named as 17/0 and 17/1; got {self.ids[a]}")

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids, captions, truth and tags, which does not depend on the location."""
        digest = hashlib.sha256(b"paired" if self.paired else b"captions")
        for values in (self.ids, *self.captions, map(str, self.truth), self.tags):
            digest.update("\0".join(values).encode() + b"\1")
        return digest.hexdigest()


def open_winoground(
    *, data: str | None = None, split: str | None = None, allow_incomplete: bool = False
) -> CaptionedSource:
    """Open Winoground (Thrush et al. 2022): two images and two captions of the same words per example.

    Args:
        data: A copy as Parquet. Default: the hub's, whose licence you must have accepted.
        split: Default: "test", the only one.
        allow_incomplete: See `open_labelled`.

    Raises:
        InputError: The data cannot be read or has other columns, or a caption or tag is missing.
    """
    source = data or WINOGROUND
    table = load_table(source, split or (None if data else "test"), allow_incomplete)
    check_columns(source, table.columns, ("image_0", "image_1", "caption_0", "caption_1", "collapsed_tag", "id"))
    readers = [images_of(table, f"image_{k}")[0] for k in (0, 1)]
    both = list(zip(*(_required(table, f"caption_{k}", "caption") for k in (0, 1)), strict=True))
    examples = distinct([None if value is None else str(value) for value in table.values("id")])
    return CaptionedSource(
        source,
        tuple(f"{example}/{k}" for example in examples for k in (0, 1)),
        tuple(captions for captions in both for _ in (0, 1)),
        (0, 1) * len(both),
        lambda i: readers[i % 2](i // 2),
        tuple(tag.lower() for tag in _required(table, "collapsed_tag", "tag") for _ in (0, 1)),
        paired=True,
        notes=table.notes,
    )


def _required(table: Table, column: str, what: str) -> list[str]:
    """Return the texts of a column; raise InputError if one is missing."""
    texts = table.texts(column)
    for i, text in enumerate(texts):
        if text is None or not text.strip():
            raise InputError(f"{table.row(i)} has no {what}: column {column!r} holds {text!r}")
    return [str(text).strip() for text in texts]


def open_captioned(
    *,
    data: str | None = None,
    images: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    false_column: Sequence[str] | None = None,
    tag_column: str | None = None,
    allow_incomplete: bool = False,
) -> CaptionedSource:
    """Open images with a true caption and false ones.

    Args:
        data: A file of JSON (a list of objects, or an object of objects by id), JSON Lines, CSV, tab-separated values
            (.tsv) or Parquet; a folder of Parquet files; or the id of a data set on the hub. If a row has bbox_x,
            bbox_y, bbox_w and bbox_h, the image is cropped to that box, as by ARO's own loader.
        images: Folder at which relative paths of images start. Default: the file's folder.
        split: Split of a folder or of a data set on the hub.
        image_column: Column of paths or images. Default: image, image_path, filename, file_name, path or file.
        caption_column: Column of true captions. Default: true_caption or caption.
        false_column: Columns of false captions, each a text or a list. Default: those called false_caption,
            false_captions, negative_caption or negative_captions. Their number may differ between rows; duplicates
            count once.
        tag_column: Column of groups for which results are reported separately. Default: tag or relation_name, if
            there is one.
        allow_incomplete: See `open_labelled`.

    Raises:
        InputError: The data cannot be read in this form.
    """
    if data is None:
        raise InputError("captions are of your own: give the file of them by --data")
    if images is not None and not Path(images).is_dir():
        raise InputError(f"there is no folder {images}, which --images names")
    table = load_table(data, split, allow_incomplete)
    if images is not None:
        table = replace(table, folder=lambda _: Path(images))
    columns = table.columns
    image = _column(data, columns, image_column, _IMAGE_COLUMNS, "images", "--image-column")
    true = _column(data, columns, caption_column, _CAPTION_COLUMNS, "true captions", "--caption-column")
    false = list(false_column or [name for name in _FALSE_COLUMNS if name in columns])
    false = false or [_column(data, columns, None, _FALSE_COLUMNS, "false captions", "--false-column")]
    tag = tag_column or next((name for name in _TAG_COLUMNS if name in columns), None)
    check_columns(data, columns, [*false, *([tag] if tag else [])])
    if pictures := [name for name in (true, *false) if columns[name].kind == "image"]:
        raise InputError(f"column {pictures[0]!r} of {data} holds images instead of captions")
    captions = []
    for i, row in enumerate(zip(*(table.values(name) for name in (true, *false)), strict=True)):
        others = [text for value in row[1:] for text in (value if isinstance(value, list) else [value])]
        texts = [row[0], *(text for text in others if text not in (None, ""))]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{table.row(i)} has captions that are no text, but {short(texts)}")
        for text in texts:
            check_no_list(text, f"a caption of {table.row(i)}")
        own, *false_ones = (text.strip() for text in texts)
        captions.append((own, *dict.fromkeys(false_ones)))
    read = images_of(table, image)[0]
    if set(_BOX) <= columns.keys():
        read = _cropped(read, _boxes(table))
    ids = table.keys or (table.values("id") if "id" in columns else [None] * len(captions))
    return CaptionedSource(
        data,
        distinct([None if value is None else str(value) for value in ids]),
        tuple(captions),
        (0,) * len(captions),
        read,
        _tags(table, tag) if tag else (),
        notes=table.notes,
    )


def _tags(table: Table, column: str) -> tuple[str, ...]:
    if table.columns[column].kind != "integer":
        return tuple(_required(table, column, "tag"))
    numbers = table.values(column)
    if None in numbers:
        raise InputError(f"{table.row(numbers.index(None))} has no tag: column {column!r} holds None")
    return tuple(map(str, numbers))


def _column(source: str, there: Iterable[str], given: str | None, usual: Sequence[str], what: str, option: str) -> str:
    if given is not None:
        check_columns(source, there, [given])
        return given
    found = next((name for name in usual if name in there), None)
    if found is None:
        raise InputError(
            f"{source} has no column of {what}, such as {' or '.join(usual)}; it has {', '.join(there)}: name one with "
            f"{option}"
        )
    return found


def _boxes(table: Table) -> list[tuple[int, ...]]:
    boxes: list[tuple[int, ...]] = []
    for i, box in enumerate(zip(*(table.values(name) for name in _BOX), strict=True)):
        try:
            numbers = [float(value) for value in box if not isinstance(value, bool)]
        except (TypeError, ValueError, OverflowError) as e:
            raise InputError(f"{table.row(i)} has no box of numbers, but {short(box)}") from e
        if len(numbers) < len(box) or not all(math.isfinite(number) for number in numbers):
            raise InputError(f"{table.row(i)} has no box of numbers, but {short(box)}")
        left, top, width, height = map(int, numbers)
        if min(width, height) < 1:
            raise InputError(f"{table.row(i)} has a box without room: {short(box)}")
        if max(map(abs, (left, top, width, height))) > MAX_EDGE or width * height > MAX_PIXELS:
            raise InputError(f"{table.row(i)} has a box larger than any image: {short(box)}")
        if left + width <= 0 or top + height <= 0:
            raise InputError(f"{table.row(i)} has a box outside of its image: {short(box)}")
        boxes.append((left, top, width, height))
    return boxes


def _cropped(read: Callable[[int], ImageSource], boxes: Sequence[tuple[int, ...]]) -> Callable[[int], ImageSource]:
    """Crop each image to its box (left, top, width, height); black beyond the image."""

    def cropped(i: int) -> ImageSource:
        source = read(i)
        left, top, width, height = boxes[i]
        try:
            picture = load_image(source)
            if left >= picture.image.width or top >= picture.image.height:
                return Image.new("RGB", (0, 0))  # nothing of the image: rejected when it is loaded
            return replace(picture, image=picture.image.crop((left, top, left + width, top + height)))
        except ImageError:
            return source  # the error is raised again when it is loaded

    return cropped
