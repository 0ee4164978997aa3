"""Tables as the library `datasets` reads them: what holds them, their columns, and files beside them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .exceptions import InputError
from .images import ImageSource
from .splits import folder_kind, split_of

TABLES = {".parquet": "parquet", ".csv": "csv", ".tar": "webdataset"}
"""Files that hold a data set: suffix → how `datasets` calls what reads it."""

_CONVERTED = "refs/convert/parquet"
"""Where the hub keeps what it made of a data set that comes with a program to read it, which is not run."""


def load_table(source: str, split: str | None) -> tuple[Any, str]:
    """A table of `datasets`, and what read it; arguments as in `open_source`.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    import datasets

    path = Path(source)
    arguments: tuple[str, ...] = (source,)
    options: dict[str, Any] = {}
    kind = "hub"
    if path.is_file():
        if path.suffix.lower() not in TABLES:
            raise InputError(f"{source} is no data set: of files, {', '.join(TABLES)} can be read")
        kind = TABLES[path.suffix.lower()]
        arguments, options = (kind,), {"data_files": {split or "test": source}}
    elif path.is_dir():
        kind = folder_kind(path)
        if kind == "imagefolder":
            arguments, options = (kind,), {"data_dir": source}
            if not any(split_of(name.name) for name in path.iterdir() if name.is_dir()):  # nor are there in file names
                options |= {"data_files": {"train": "**"}}
    elif path.suffix.lower() in (*TABLES, ".json", ".jsonl"):
        raise InputError(f"there is no file {source}")
    elif not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise InputError(f"there is no folder {source}, and the name of a data set it cannot be")

    def load(split: str | None, **options: Any) -> Any:
        if split is None:
            splits = datasets.get_dataset_split_names(*arguments, **options)
            split = splits[0] if len(splits) == 1 else "test"
        return datasets.load_dataset(*arguments, split=split, **options)

    try:
        with _bars_on_terminals():
            try:
                return load(split, **options), kind
            except RuntimeError as e:
                if "scripts are no longer supported" not in str(e):
                    raise
                return load(split, revision=_CONVERTED), kind
    except Exception as e:
        if kind == "hub" and "gated dataset" in str(e):
            raise InputError(
                f"{source} is for those who accepted its licence: do so at https://huggingface.co/datasets/{source}, "
                "and log in on this machine by `hf auth login`"
            ) from e
        raise InputError(f"{source} cannot be read as a data set (split {split!r}): {e}") from e


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Without progress bars where nobody watches them."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    if shown and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def check_columns(source: str, there: Iterable[str], wanted: Iterable[str]) -> None:
    """Complain of columns that are not there.

    Raises:
        InputError: one is not.
    """
    for column in wanted:
        if column not in there:
            raise InputError(f"{source} has no column {column!r}; it has {', '.join(there)}")


def images_of(
    table: Any, column: str, folder: Path, source: str
) -> tuple[Callable[[int], ImageSource], list[str | None]]:
    """What reads the images of a column, and what each is called, where that is known.

    Args:
        table: of `datasets`.
        column: holds images, or paths.
        folder: where paths begin.
        source: for messages.

    Raises:
        InputError: the column holds something else.
    """
    import datasets

    if "string" in str(getattr(table.features[column], "dtype", "")):
        paths: list[str | None] = table[column][:]
        return lambda i: b"" if (path := paths[i]) is None else folder / path, paths
    try:
        raw = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
    except Exception as e:
        raise InputError(f"column {column!r} of {source} cannot be read as images: {e}") from e

    def read(i: int) -> ImageSource:
        item = raw[i][column] or {"path": None, "bytes": b""}
        content: ImageSource = item["path"] if item["bytes"] is None else item["bytes"]
        return content

    return read, _paths(raw, column, folder)


def _paths(table: Any, column: str, folder: Path) -> list[str | None]:
    """Paths of a column's images, without their contents."""
    paths = [value for chunk in table.data.column(column).chunks for value in chunk.field("path").to_pylist()]
    root = f"{folder.resolve()}/"
    return [path.removeprefix(root) if path else None for path in paths]


def columns_of(features: Any, kind: type, usual: Sequence[str]) -> list[str]:
    """Columns of that kind, else the first that is called as usual."""
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    return found or [name for name in usual if name in features][:1]


def only_column(features: Any, kind: type, usual: Sequence[str], source: str, what: str) -> str:
    """The only one of `columns_of`.

    Raises:
        InputError: there is none, or there are several.
    """
    found = columns_of(features, kind, usual)
    if len(found) != 1:
        raise InputError(
            f"{source} has {len(found)} {what} columns ({', '.join(features)}); name one with --{what}-column"
        )
    return str(found[0])


def read_beside(source: str, folder: Path, labels: Any) -> dict[str, tuple[str, ...]]:
    """Class names and templates in files beside the shards, as CLIP benchmark has them.

    Raises:
        InputError: the hub does not answer.
    """
    import datasets

    if isinstance(labels, datasets.ClassLabel) or "string" in labels.dtype:
        return {}
    found = {}
    for key, name in (("names", "classnames.txt"), ("templates", "zeroshot_classification_templates.txt")):
        file = _file_beside(source, folder, name)
        if file is not None:
            lines = file.read_text("utf-8").splitlines()
            found[key] = tuple(line.strip().replace("{c}", "{}") for line in lines if line.strip())
    return found


def _file_beside(source: str, folder: Path, name: str) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if Path(source).exists():
        return next((place / name for place in (folder, folder.parent) if (place / name).is_file()), None)
    try:
        return Path(hf_hub_download(source, name, repo_type="dataset"))
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise InputError(f"{name} of {source} cannot be had from the hub: {e}") from e
