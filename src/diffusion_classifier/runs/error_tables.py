"""Error tables on disk: a Parquet file with a row for each image, and the settings that made them.

Raw errors are what cost time. Strategies, weights over t, priors and temperatures are refitted from them without the
network.

Shape legend: K classes, N draws.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..errors import InputError
from ..search.classification import Classification
from .spec import refuse_captions, spec_with_errors
from .store import read_rows, with_status

VERSION = 2
ROWS_PER_GROUP = 100

_KEY = b"diffusion_classifier"
_SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("truth", pa.string()),
        ("label", pa.string()),
        ("errors", pa.list_(pa.list_(pa.float32()))),
        ("t", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class ErrorTables:
    """Error tables of some images.

    Args:
        class_names: K.
        settings: what made them: model, loss, timesteps, strategy …; `num_dimensions` of a latent; `num_timesteps`;
            `weights` over time that they were read with, and `usual_weights` of the model: uniform if None.
        images: names.
        truth: the right label of each, None where it is not known.
        errors: of each image (K, N), float32, NaN where never evaluated.
        t: of each image (N,), float64.
    """

    class_names: tuple[str, ...]
    settings: dict[str, Any]
    images: tuple[str, ...]
    truth: tuple[str | None, ...]
    errors: tuple[Tensor, ...]
    t: tuple[Tensor, ...]

    def complete(self) -> Tensor:
        """All tables as one tensor (images, K, N).

        Raises:
            InputError: some pair was not evaluated.
        """
        if any(bool(table.isnan().any()) or table.shape != self.errors[0].shape for table in self.errors):
            raise InputError(
                f"full tables are needed, with every class at every draw; these were made with the strategy "
                f"{self.settings.get('strategy')} and the shortlist {self.settings.get('shortlist')}: make them with "
                "fixed:DRAWS and without a shortlist"
            )
        return torch.stack(self.errors)

    def fractions(self) -> Tensor:
        """Times of the draws as fractions of the schedule, (images, N), float64."""
        fractions: Tensor = torch.stack(self.t).double() / self.settings["num_timesteps"]
        return fractions


class Writer(Protocol):
    """Adds a result to a file."""

    def __call__(self, result: Classification, truth: str | None = None) -> None: ...


@contextmanager
def table_writer(file: Path, class_names: Sequence[str], settings: dict[str, Any]) -> Iterator[Writer]:
    """Writes error tables as they come. What came is kept when the work is broken off; failed images are left out.

    Nothing that is there is replaced by nothing.

    Args:
        file: to write; it appears under this name when all is written that will be.
        class_names: K.
        settings: see `ErrorTables`.

    Raises:
        InputError: the file cannot be written.
    """
    if file.exists() and not file.is_file():  # which would be lost to the file that takes its name
        raise InputError(f"{file} is a folder or a device: error tables are written to a file")
    about = {"version": VERSION, "class_names": list(class_names), "settings": settings}
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(about)})
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    rows: list[dict[str, Any]] = []
    some: list[bool] = []
    try:
        parquet = pq.ParquetWriter(unfinished, schema, compression="zstd")
    except OSError as e:
        raise InputError(f"{file} cannot be written: {e}") from e

    def flush() -> None:
        if rows:
            parquet.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()
            some.append(True)

    def write(result: Classification, truth: str | None = None) -> None:
        if result.failure is None:
            name = result.name.encode("utf-8", "backslashreplace").decode()  # a file's may be of other bytes
            row = {"image": name, "truth": truth, "label": result.label}
            rows.append(row | {"errors": result.errors.tolist(), "t": result.t.double().tolist()})
        if len(rows) == ROWS_PER_GROUP:
            flush()

    try:
        yield write
    finally:
        flush()
        parquet.close()
        if some or not file.exists():
            os.replace(unfinished, file)
        else:
            unfinished.unlink()


def read_tables(file: Path) -> ErrorTables:
    """What `table_writer` wrote, or the error tables of a run.

    Args:
        file: the file, or the folder of the run.

    Raises:
        InputError: no such file, another kind of file, or no images in it; a run that kept no errors.
    """
    if file.is_dir():
        return _of_run(file)
    try:
        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[_KEY])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{file} cannot be read as error tables, which `classify --save-errors` writes: {e}") from e
    if about["version"] != VERSION:
        raise InputError(f"{file} holds error tables of version {about['version']}; this is for version {VERSION}")
    if not len(table):
        raise InputError(f"{file} holds no images")
    columns = (table[name] for name in ("image", "truth", "errors", "t"))
    return _tables(tuple(about["class_names"]), about["settings"], *columns)


def _of_run(folder: Path) -> ErrorTables:
    spec = spec_with_errors(folder)
    refuse_captions(folder, spec, "this")
    columns = ["id", "label", "errors", "timesteps"]
    rows = with_status(read_rows(folder, [*columns, "status"]), "done")
    if not len(rows):
        raise InputError(f"{folder} holds no images")
    # Not in the order in which they were finished, so that folds do not depend on it; 9 comes before 10.
    ids = rows["id"].to_pylist()
    rows = rows.take(sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i])))
    return _tables(spec.class_names, asdict(spec), *(rows[name] for name in columns))


def _tables(class_names: tuple[str, ...], settings: dict[str, Any], *columns: pa.ChunkedArray) -> ErrorTables:
    images, truth, errors, t = columns
    values = [np.array(table.values.flatten(), dtype=np.float32) for table in errors]
    return ErrorTables(
        class_names=class_names,
        settings=settings,
        images=tuple(images.to_pylist()),
        truth=tuple(truth.to_pylist()),
        errors=tuple(torch.from_numpy(v).view(len(class_names), -1) for v in values),
        t=tuple(map(torch.tensor, t.to_pylist())),
    )
