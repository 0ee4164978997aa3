"""Error tables on disk: a Parquet file with one row per image, and the settings that made them.

Errors are what takes time to compute. Strategies, timestep weights, priors and temperatures are fitted to stored errors
without the network.

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
from .spec import check_class_run, spec_with_errors
from .store import read_rows, with_status

VERSION = 3
"""Version 2 has the column `label` in place of `prediction`, and the setting `usual_weights`."""
ROWS_PER_GROUP = 100

_KEY = b"diffusion_classifier"
_SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("truth", pa.string()),
        ("prediction", pa.string()),
        ("errors", pa.list_(pa.list_(pa.float32()))),
        ("t", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class ErrorTables:
    """Error tables of some images.

    Args:
        class_names: K class names.
        settings: settings that made them: model, loss, timesteps, strategy …; `num_dimensions` of a latent;
            `num_timesteps`; timestep `weights` of the posterior, and `default_weights` of the model: uniform if None.
        images: name of each image.
        truth: true class of each image; None if unknown.
        errors: error table of each image, (K, N), float32, NaN where not evaluated.
        t: timesteps of each image, (N,), float64.
    """

    class_names: tuple[str, ...]
    settings: dict[str, Any]
    images: tuple[str, ...]
    truth: tuple[str | None, ...]
    errors: tuple[Tensor, ...]
    t: tuple[Tensor, ...]

    def complete(self) -> Tensor:
        """Return all tables as one tensor (images, K, N).

        Raises:
            InputError: a class was not evaluated at some draw.
        """
        if any(bool(table.isnan().any()) or table.shape != self.errors[0].shape for table in self.errors):
            raise InputError(
                f"full tables are needed, with every class at every draw; these were made with the strategy "
                f"{self.settings.get('strategy')} and the shortlist {self.settings.get('shortlist')}: make them with "
                "fixed:DRAWS and without a shortlist"
            )
        return torch.stack(self.errors)

    def fractions(self) -> Tensor:
        """Return the timesteps of the draws as fractions of the schedule, (images, N), float64."""
        fractions: Tensor = torch.stack(self.t).double() / self.settings["num_timesteps"]
        return fractions


class Writer(Protocol):
    """Writes a result to a file."""

    def __call__(self, result: Classification, truth: str | None = None) -> None: ...


@contextmanager
def table_writer(file: Path, class_names: Sequence[str], settings: dict[str, Any]) -> Iterator[Writer]:
    """Open a file for error tables. Those of an interrupted process are kept; failed images are left out.

    An existing file is never overwritten by an empty one.

    Args:
        file: file to write; it appears under this name once it is complete.
        class_names: K class names.
        settings: see `ErrorTables`.

    Raises:
        InputError: the file cannot be written.
    """
    if file.exists() and not file.is_file():  # it would be replaced
        raise InputError(f"{file} is a folder or a device: error tables are written to a file")
    about = {"version": VERSION, "class_names": list(class_names), "settings": settings}
    schema = _SCHEMA.with_metadata({_KEY: json.dumps(about)})
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    rows: list[dict[str, Any]] = []
    written = False
    try:
        parquet = pq.ParquetWriter(unfinished, schema, compression="zstd")
    except OSError as e:
        raise InputError(f"{file} cannot be written: {e}") from e

    def flush() -> None:
        nonlocal written
        if rows:
            parquet.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()
            written = True

    def write(result: Classification, truth: str | None = None) -> None:
        if result.failure is None:
            name = result.name.encode("utf-8", "backslashreplace").decode()  # file names may be invalid Unicode
            row = {"image": name, "truth": truth, "prediction": result.label}
            rows.append(row | {"errors": result.errors.tolist(), "t": result.t.double().tolist()})
        if len(rows) == ROWS_PER_GROUP:
            flush()

    try:
        yield write
    finally:
        flush()
        parquet.close()
        if written or not file.exists():
            os.replace(unfinished, file)
        else:
            unfinished.unlink()


def read_tables(file: Path) -> ErrorTables:
    """Read the error tables of a file that `table_writer` wrote, or of a run.

    Args:
        file: the file, or the folder of the run.

    Raises:
        InputError: the file does not exist, is of another kind, or holds no images; the run stored no errors.
    """
    if file.is_dir():
        return _read_run(file)
    try:
        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[_KEY])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as e:
        raise InputError(f"{file} cannot be read as error tables, which `classify --save-errors` writes: {e}") from e
    if about["version"] == 2 and "usual_weights" in about["settings"]:
        about["settings"]["default_weights"] = about["settings"].pop("usual_weights")
    elif about["version"] not in (2, VERSION):
        raise InputError(f"{file} holds error tables of version {about['version']}; this is for version {VERSION}")
    if not len(table):
        raise InputError(f"{file} holds no images")
    columns = (table[name] for name in ("image", "truth", "errors", "t"))
    return _tables(tuple(about["class_names"]), about["settings"], *columns)


def _read_run(folder: Path) -> ErrorTables:
    spec = spec_with_errors(folder)
    check_class_run(folder, spec, "this")
    columns = ["id", "truth", "errors", "timesteps"]
    rows = with_status(read_rows(folder, [*columns, "status"]), "done")
    if not len(rows):
        raise InputError(f"{folder} holds no images")
    # Sorted, so that folds do not depend on the order in which images were finished; 9 comes before 10.
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
