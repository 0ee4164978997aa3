"""Runs on disk: a specification and one row per image; no finished row is lost when the process ends.

A run is a folder:

    spec.json            the specification; a run with other settings in the same folder is rejected
    shards/*.parquet     finished rows, see `row.ResultRow`
    shards/*.arrows      rows of the unfinished shard: each is on disk before the next image is done
    summary.json         metrics; computed from the rows, never the only copy
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
from .row import OLD_NAMES, SCHEMA, ResultRow, rows_to_table
from .spec import SPEC, RunSpec, check_same_run, convert_spec, read_spec, write_spec

SHARDS, SUMMARY = "shards", "summary.json"
ROWS_PER_SHARD, BYTES_PER_SHARD = 1000, 2**26
SYNC_EVERY = 64
"""Number of rows between calls of fsync. A power cut may lose that many rows; a killed process loses none."""


@dataclass(frozen=True)
class Part:
    """Share of one process in a run: part `index` of `count`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1}-of-{self.count}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """Parse "1/4", the first of four parts.

        Raises:
            InputError: the text has another form.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(f"a part of a run is written as 1/4, the first of four; got {text!r}")
        return cls(int(found[1]) - 1, int(found[2]))


class Run:
    """A run that is open for writing; see `open_run`.

    Attributes:
        spec: the stored spec.
        done: ids of finished images, of all parts. Failed images are not among them and are tried again.
        notes: sentences about damage that was found and repaired.
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
        """Seal the streams of killed processes, set unreadable shards aside, and return the ids of done images."""
        done: set[str] = set()
        whole = self._part.count == 1  # no other process writes
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
                self.notes.append(
                    f"{path} cannot be read ({e}); it is now {aside.name}, and its images are evaluated again"
                )
        for path in self._shards.glob("*.arrows"):  # of the other parts
            done.update(with_status(_read_stream(path), "done")["id"].to_pylist())
        return done

    def write(self, row: ResultRow) -> None:
        """Store one row. Once this returns, killing the process cannot lose it.

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
                self._stream.write_table(rows_to_table([row]))
            except OSError:
                self._file.close()
                self._stream = None
                os.truncate(path, whole)  # a reader cannot go past half a row
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
                "run the same command to resume"
            ) from e
        self.done.add(row.id)

    def extend(self, rows: pa.Table) -> None:
        """Store many rows as a shard of their own.

        Args:
            rows: with all columns of `SCHEMA`.

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
        """Turn the stream of written rows into a shard."""
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
    """Turn a stream into a Parquet file."""
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
    """Start or resume a run, under a lock. Several processes may share it as parts 1/n … n/n.

    A run of version 1 is resumed as well: new shards have the columns of version 2, and its spec is replaced.

    Args:
        folder: folder of the run.
        spec: the requested run.
        part: part of the run that this process writes; all of it if None.

    Raises:
        InputError: the folder holds another run, or something else; it cannot be written to; another process writes it.
    """
    part = part or Part()
    if folder.exists() and not _may_become_a_run(folder) and not (folder / SPEC).is_file():
        raise InputError(f"{folder} exists and is not the folder of a run: choose another --out")
    with ExitStack() as stack:
        try:
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            _lock(folder, part, stack)
            if begins := not (folder / SPEC).is_file():
                write_spec(folder, spec)  # another part may do the same at this moment
            there = read_spec(folder)
            check_same_run(folder, there, spec)
            convert_spec(folder, there)
            run = Run(folder, there, part)
        except OSError as e:
            raise InputError(f"{folder} cannot be used as the folder of a run: {e}") from e
        try:
            yield run
        except InputError:
            if begins and part.count == 1 and not run.done:  # the settings are invalid: leave no run
                (folder / SPEC).unlink(missing_ok=True)
            raise
        finally:
            with suppress(OSError):  # the rows can be read from the stream, too
                run.seal()


def _may_become_a_run(folder: Path) -> bool:
    """Return whether a folder is empty, or holds only what a process leaves that is killed on its start."""
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
    """Read the complete rows of a stream, which may end anywhere."""
    batches = []
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            while True:
                batches.append(reader.read_next_batch())
    except (StopIteration, pa.ArrowInvalid, OSError):
        pass  # the end, or a row that was cut off
    return _completed(pa.Table.from_batches(batches), SCHEMA.names) if batches else SCHEMA.empty_table()


def read_rows(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a run, one per image, in the order in which they were finished. The run may be unfinished.

    Args:
        folder: folder of the run, of version 1 or 2.
        columns: names of the columns to read; all if None.

    Returns:
        A table with today's names of the columns.

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
                there = [name for name in file.schema_arrow.names if OLD_NAMES.get(name, name) in names]
                parts.append(_completed(file.read(columns=there), names))
        except (OSError, pa.ArrowException) as e:
            raise InputError(
                f"{path} cannot be read ({e}): start the run again, which sets it aside and evaluates its images again"
            ) from e
    for path in sorted((folder / SHARDS).glob("*.arrows")):
        if not path.with_suffix(".parquet").exists():
            parts.append(_read_stream(path).select(names))
    return _last_tries(pa.concat_tables(parts) if parts else _schema(names).empty_table()).select(wanted)


def _last_tries(rows: pa.Table) -> pa.Table:
    """Keep only the last attempt of each image."""
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
    """Return these columns in this order, under today's names; null where the file was written before a column existed.

    Columns have the old names in shards of version 1, and in streams that a process of that version left.
    """
    table = table.rename_columns([OLD_NAMES.get(name, name) for name in table.column_names])
    for name in set(names) - set(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(names).cast(_schema(names))


def check_labelled(folder: Path, rows: pa.Table) -> None:
    """Raise if the true class of an image is unknown.

    Args:
        folder: folder of the run, for the message.
        rows: with the column `truth`.

    Raises:
        InputError: one is unknown.
    """
    if rows["truth"].null_count:
        raise InputError(
            f"the images of {folder} have no labels, so correct predictions cannot be told from wrong ones"
        )


def with_status(rows: pa.Table, status: str) -> pa.Table:
    """Return the rows whose status is "done", or "failed"."""
    return rows.filter(pa.compute.equal(rows["status"], status))
