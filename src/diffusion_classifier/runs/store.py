"""Runs on disk: what was evaluated and how, one row for each image, and nothing lost whenever the work ends.

A run is a folder:

    spec.json            what was asked for; a different question in the same folder is refused
    shards/*.parquet     finished rows
    shards/*.arrows      rows of the shard that is being written: each is on disk before the next image is done
    summary.json         what the rows say; made of them, never the only copy
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from ..errors import InputError
from ..files import sync, write_durably
from .spec import SPEC, RunSpec, read_spec, refuse_another, write_spec

SHARDS, SUMMARY = "shards", "summary.json"
ROWS_PER_SHARD, BYTES_PER_SHARD = 1000, 2**26
SYNC_EVERY = 64
"""Rows after which the disk is waited for: so many may be lost to a power cut, none to a killed process."""

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("posterior", pa.list_(pa.float64())),
        ("confidence", pa.float64()),
        ("undecided", pa.list_(pa.string())),
        ("num_evaluations", pa.int64()),
        ("cost", pa.float64()),
        ("seconds", pa.float64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("errors", pa.list_(pa.list_(pa.float32()))),
        ("timesteps", pa.list_(pa.float64())),
        ("also", pa.map_(pa.string(), pa.list_(pa.list_(pa.float32())))),
        ("candidates", pa.list_(pa.string())),
        ("tag", pa.string()),
        ("fits", pa.list_(pa.float64())),
    ]
)
"""Columns of a shard. `status` is "done" or "failed", for the `reason`; `errors`, `timesteps` and `also` are null
unless stored: error tables of the run's loss, their times, and error tables of other losses. `candidates` and `tag` are
of images with captions of their own. `fits` says how well each caption or class fits, and may be compared between
images: the score of `DiffusionClassifier.score` against the null condition, or the logit of a model that answers in one
pass; null where it is not known."""


@dataclass(frozen=True)
class Part:
    """One of several processes that share a run: `index` of `count`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """From "1/4", counted from 1.

        Raises:
            InputError: it is none.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"a part of a run is written as 1/4, the first of four; got {text!r}")
        return cls(int(found[1]) - 1, int(found[2]))


class Run:
    """A run that is being written; see `open_run`.

    Attributes:
        spec: as stored, when it was begun.
        done: ids of images that need not be done, of all parts; those that failed before are tried again.
        notes: what was found and mended.
    """

    def __init__(self, folder: Path, spec: RunSpec, part: Part) -> None:
        self.folder, self.spec, self._part = folder, spec, part
        self.notes: list[str] = []
        self._shards = folder / SHARDS
        self._file: Any = None
        self._stream: Any = None
        self._rows = 0
        self._next = 0
        self.done = self._recover()

    def _recover(self) -> set[str]:
        """Seals what a killed process left, sets aside what cannot be read, and tells which images are done."""
        done: set[str] = set()
        whole = self._part.count == 1  # no other part is at work
        for path in sorted(self._shards.glob("*.arrows" if whole else f"{self._part}-*.arrows")):
            _seal(path)
        for path in sorted(self._shards.glob(f"{self._part}-*.parquet")):
            self._next = max(self._next, int(path.stem.rpartition("-")[2]) + 1)
        for path in sorted(self._shards.glob("*.parquet")):
            try:
                done.update(with_status(pq.read_table(path, columns=["id", "status"]), "done")["id"].to_pylist())
            except (OSError, pa.ArrowException) as e:
                aside = path.with_suffix(".corrupt")
                path.rename(aside)
                self.notes.append(f"{path} cannot be read ({e}); it is now {aside.name}, and its images are done again")
        for path in self._shards.glob("*.arrows"):  # of other parts
            done.update(with_status(_read_stream(path), "done")["id"].to_pylist())
        return done

    def write(self, row: Row) -> None:
        """Keep one finished row: when this returns, a kill of the process cannot take it away.

        Raises:
            InputError: the disk is full, or the folder cannot be written to.
        """
        path = self._path.with_suffix(".arrows")
        try:
            if self._stream is None:
                self._file = pa.OSFile(str(path), "wb")
                self._stream = pa.ipc.new_stream(self._file, SCHEMA)
            whole = self._file.tell()
            try:
                self._stream.write_batch(pa.RecordBatch.from_pylist([row], SCHEMA))
            except OSError:
                self._file.close()
                self._stream = None
                os.truncate(path, whole)  # what follows half a row could not be read
                self._next += 1
                raise
            self._rows += 1
            if self._rows % SYNC_EVERY == 0:
                sync(path)
            if self._rows == ROWS_PER_SHARD or self._file.tell() > BYTES_PER_SHARD:
                self.seal()
        except OSError as e:
            raise InputError(
                f"{self.folder} cannot be written to ({e}); {len(self.done)} images are done and kept: make room, and "
                "start again to go on"
            ) from e
        self.done.add(row["id"])

    def extend(self, rows: pa.Table) -> None:
        """Keep many rows, as a shard of their own.

        Raises:
            InputError: as `write`.
        """
        try:
            self.seal()
            _write_parquet(rows.cast(SCHEMA), self._path.with_suffix(".parquet"))
        except OSError as e:
            raise InputError(f"{self.folder} cannot be written to: {e}") from e
        self._next += 1
        self.done.update(rows["id"].to_pylist())

    @property
    def _path(self) -> Path:
        return self._shards / f"{self._part}-{self._next:06d}"

    def seal(self) -> None:
        """Turn what was written into a shard."""
        if self._stream is None:
            return
        self._stream.close()
        self._file.close()
        self._stream = None
        self._rows = 0
        path = self._path.with_suffix(".arrows")
        self._next += 1
        _seal(path)


def _seal(path: Path) -> None:
    """Turn the file of a stream into one of Parquet."""
    sealed = path.with_suffix(".parquet")
    rows = _read_stream(path)
    if len(rows) and not sealed.exists():
        _write_parquet(rows, sealed)
    path.unlink()


def _write_parquet(rows: pa.Table, path: Path) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(rows, buffer, compression="zstd")
    write_durably(path, buffer.getvalue())


@contextmanager
def open_run(folder: Path, spec: RunSpec, part: Part | None = None) -> Iterator[Run]:
    """Begin a run, or go on with it. No second process gets in, but one with another part of the same number of parts.

    Args:
        folder: of the run.
        spec: what is asked for.
        part: of the run; all of it if None.

    Raises:
        InputError: the folder holds a run of something else, or no run; it cannot be written to; another process is at
            work in it.
    """
    part = part or Part()
    if folder.exists() and not _may_become_a_run(folder) and not (folder / SPEC).is_file():
        raise InputError(f"{folder} exists and is not the folder of a run: choose another --out")
    with ExitStack() as stack:
        try:
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            _lock(folder, part, stack)
            if begins := not (folder / SPEC).is_file():
                write_spec(folder, spec)  # as a process with another part may do now
            there = read_spec(folder)
            refuse_another(folder, there, spec)
            run = Run(folder, there, part)
        except OSError as e:
            raise InputError(f"{folder} cannot be used as the folder of a run: {e}") from e
        try:
            yield run
        except InputError:
            if begins and part.count == 1 and not run.done:  # what was asked for cannot be done: nothing is there
                (folder / SPEC).unlink(missing_ok=True)
            raise
        finally:
            with suppress(OSError):  # rows can be read from where they are
                run.seal()


def _may_become_a_run(folder: Path) -> bool:
    """Whether a folder is empty, or holds no more than what a process left that was killed as it began."""
    if not folder.is_dir():
        return False
    return all(
        path.name == SHARDS or path.suffix == ".lock" or path.name.startswith(f"{SPEC}.") for path in folder.iterdir()
    )


def _lock(folder: Path, part: Part, stack: ExitStack) -> None:
    own = folder / f"{part}.lock"
    try:
        stack.enter_context(FileLock(own).acquire(timeout=0))
        for other in folder.glob("*.lock"):
            if other != own and not other.name.endswith(f"-of-{part.count}.lock"):
                FileLock(other).acquire(timeout=0).lock.release()
    except Timeout as e:
        raise InputError(
            f"another process is at work in {folder} (it holds {Path(e.lock_file).name}): wait for it, or let several "
            "share the run, --part 1/2 and --part 2/2"
        ) from e


def _read_stream(path: Path) -> pa.Table:
    """The whole rows of a stream, which may end anywhere."""
    batches = []
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            while True:
                batches.append(reader.read_next_batch())
    except (StopIteration, pa.ArrowInvalid, OSError):
        pass  # its end, or where it was cut
    return _completed(pa.Table.from_batches(batches), SCHEMA.names) if batches else SCHEMA.empty_table()


def read_rows(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a run, which may still be at work, in the order in which they were finished, one for each image.

    Args:
        folder: of the run.
        columns: names of some; all if None.

    Raises:
        InputError: a shard cannot be read.
    """
    read_spec(folder)
    wanted = list(columns) if columns is not None else SCHEMA.names
    names = list(dict.fromkeys([*wanted, "id", "status"]))
    parts = []
    for path in sorted((folder / SHARDS).glob("*.parquet")):
        try:
            with pq.ParquetFile(path) as file:
                there = [name for name in names if name in file.schema_arrow.names]
                parts.append(_completed(file.read(columns=there), names))
        except (OSError, pa.ArrowException) as e:
            raise InputError(
                f"{path} cannot be read ({e}): start the run again, which sets it aside and does its images again"
            ) from e
    for path in sorted((folder / SHARDS).glob("*.arrows")):
        if not path.with_suffix(".parquet").exists():
            parts.append(_read_stream(path).select(names))
    return _last_tries(pa.concat_tables(parts) if parts else _schema(names).empty_table()).select(wanted)


def _last_tries(rows: pa.Table) -> pa.Table:
    """Without the failures of images that were tried again."""
    failed, ids = pa.compute.equal(rows["status"], "failed").to_pylist(), rows["id"].to_pylist()
    if not any(failed):
        return rows
    last = {id_: i for i, id_ in enumerate(ids)} | {
        id_: i for i, (id_, f) in enumerate(zip(ids, failed, strict=True)) if not f
    }
    return rows.filter(pa.array([last[id_] == i for i, id_ in enumerate(ids)]))


def _schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in names])


def _completed(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """With these columns, in this order; null where it was written before there were such."""
    for name in set(names) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(names).cast(_schema(names))


def refuse_unlabelled(folder: Path, rows: pa.Table) -> None:
    """Complain of a run whose images have no labels.

    Raises:
        InputError: it is one.
    """
    if rows["label"].null_count:
        raise InputError(f"the images of {folder} have no labels, so that nothing tells right answers from wrong ones")


def with_status(rows: pa.Table, status: str) -> pa.Table:
    """Those of the rows that are "done", or "failed"."""
    return rows.filter(pa.compute.equal(rows["status"], status))
