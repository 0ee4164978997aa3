"""Images with one text each, in folders with metadata, tables, webdataset shards, or a data set on the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .dataset_columns import check_columns, image_columns, images_of, label_columns, only
from .idx import is_idx_folder
from .images import ImageSource
from .labelled import LABEL_COLUMNS, PATH_COLUMNS
from .splits import Place, is_image_folder
from .table_files import load_table

_CAPTION_COLUMNS = ("text", "caption")


@dataclass(frozen=True)
class TextSource:
    """Images, each with a text that describes it.

    Args:
        name: Path or id of the data set.
        captions: (M,) texts.
        read: Returns image i for `load_image`; b"" for a missing image.
        notes: See `LabelledSource`.
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
    """Open images with one text each.

    Args:
        source: A folder of images with a metadata.csv, .jsonl or .parquet that has the columns file_name and text; or
            a table, shards or a data set on the hub, as in `open_labelled`.
        split: See `open_labelled`.
        image_column: See `open_labelled`.
        caption_column: Column of the texts. Default: "text" or "caption".
        allow_incomplete: See `open_labelled`.

    Raises:
        InputError: The data cannot be read as images with texts, or an image has no text.
    """
    table = load_table(source, split, allow_incomplete)
    columns = table.columns
    caption_column = caption_column or next((name for name in _CAPTION_COLUMNS if name in columns), "text")
    image_column = image_column or only(image_columns(table, PATH_COLUMNS), table, "image")
    check_columns(source, columns, (caption_column, image_column))
    captions = table.texts(caption_column)
    for i, caption in enumerate(captions):
        if caption is None or not caption.strip():
            raise InputError(f"{table.row(i)} has no caption: column {caption_column!r} holds {caption!r}")
    return TextSource(source, tuple(map(str, captions)), images_of(table, image_column)[0], table.notes)


def is_text_source(source: str, split: str | None = None, allow_incomplete: bool = False) -> bool:
    """Return whether a data set has texts and no labels; see `open_labelled` for the arguments."""
    if is_idx_folder(Path(source)) or is_image_folder(Place(Path(source))):
        return False
    table = load_table(source, split, allow_incomplete)
    return not label_columns(table, LABEL_COLUMNS) and any(name in table.columns for name in _CAPTION_COLUMNS)
