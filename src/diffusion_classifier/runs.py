"""Runs on disk: what was evaluated and how, one row for each image, and nothing lost whenever the work ends.

A run is a folder:

    spec.json            what was asked for; a different question in the same folder is refused
    shards/*.parquet     finished rows
    shards/*.arrows      rows of the shard that is being written: each is on disk before the next image is done
    summary.json         what the rows say; made of them, never the only copy

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from .exceptions import InputError

VERSION = 1
SPEC, SHARDS, SUMMARY = "spec.json", "shards", "summary.json"
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
    ]
)
"""Columns of a shard. `status` is "done" or "failed", for the `reason`; the last three are null unless stored: error
tables of the run's loss, their times, and error tables of other losses."""


def _identity(**options: Any) -> Any:
    return field(metadata={"identity": True}, **options)


def _runtime(**options: Any) -> Any:
    return field(metadata={"identity": False}, **options)


@dataclass(frozen=True)
class RunSpec:
    """What a run is. Fields of its identity decide the results; those of runtime do not, but for float tolerance.

    Args:
        version: of the format.
        data: fingerprint of class names, ids and labels.
        selection: fingerprint of which of its images are evaluated.
        num_images: so many are evaluated.
        class_names: K.
        weights_of_model: fingerprint of the weights of all its networks.
        templates: of prompts.
        average: over what several prompts of a class are averaged.
        image_size: edge in pixels that images are brought to.
        dtype: of the network.
        strategy: as the command line spells it.
        lags: fingerprint of what calibrates it.
        shortlist: before it.
        timesteps: where the draws lie.
        loss: of the errors.
        weights: over time.
        seed: of the noise.
        reduction: of errors in the posterior.
        temperature: of the posterior.
        prior: of the classes.
        store_errors: whether rows hold error tables.
        also: other losses, of which they hold them too.
        num_dimensions: of a latent.
        num_timesteps: of the schedule.
        usual_weights: over time, of the model.
        task: its name.
        model: as it was named.
        source: where the images were.
        metric: by which the task is reported.
        device: of the network.
        batch_size: rows of a network call.
        compiled: whether the network was.
        command: that began it.
        versions: of libraries.
        created: when, in UTC.
    """

    data: str = _identity()
    selection: str = _identity()
    num_images: int = _identity()
    class_names: tuple[str, ...] = _identity()
    weights_of_model: str = _identity()
    templates: tuple[str, ...] | None = _identity()
    average: str = _identity()
    image_size: int = _identity()
    dtype: str = _identity()
    strategy: str = _identity()
    lags: str | None = _identity()
    shortlist: str | None = _identity()
    timesteps: str = _identity()
    loss: str = _identity()
    weights: tuple[float, ...] | None = _identity()
    seed: int = _identity()
    reduction: str = _identity()
    temperature: float = _identity()
    prior: tuple[float, ...] | None = _identity()
    store_errors: bool = _identity()
    also: tuple[str, ...] = _identity()
    num_dimensions: int = _identity()
    num_timesteps: int = _identity()
    usual_weights: tuple[float, ...] | None = _identity()
    task: str | None = _runtime()
    model: str = _runtime()
    source: str = _runtime()
    metric: str = _runtime()
    device: str = _runtime()
    batch_size: int = _runtime()
    compiled: bool = _runtime()
    command: str = _runtime(default="")
    versions: Mapping[str, str] = _runtime(default_factory=dict)
    created: str = _runtime(default="")
    version: int = _identity(default=VERSION)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the results, as JSON has them."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.metadata["identity"]}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read_spec(folder: Path) -> RunSpec:
    """The spec of a run.

    Raises:
        InputError: the folder holds no run, or one of another version.
    """
    path = folder / SPEC
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {SPEC}")
    try:
        stored = json.loads(path.read_text("utf-8"))
        version = stored.get("version")
        if version != VERSION:
            raise InputError(f"{folder} holds a run of version {version}; this is for version {VERSION}")
        values: dict[str, Any] = {f.name: stored[f.name] for f in fields(RunSpec)}
    except (OSError, ValueError, AttributeError, KeyError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{path} cannot be read as the spec of a run: {e}") from e
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return RunSpec(**values)


def _refuse_another(folder: Path, there: RunSpec, now: RunSpec) -> None:
    a, b = there.identity(), now.identity()
    different = [name for name in b if a[name] != b[name]]
    if different:
        told = "; ".join(f"{name} {_short(a[name])} there, {_short(b[name])} now" for name in different)
        raise InputError(f"{folder} holds a run of something else ({told}): choose another --out")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}…"


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
        done: ids of finished images, of all parts.
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
                done.update(pq.read_table(path, columns=["id"])["id"].to_pylist())
            except (OSError, pa.ArrowException) as e:
                aside = path.with_suffix(".corrupt")
                path.rename(aside)
                self.notes.append(f"{path} cannot be read ({e}); it is now {aside.name}, and its images are done again")
        for path in self._shards.glob("*.arrows"):  # of other parts
            done.update(_read_stream(path)["id"].to_pylist())
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
                _sync(path)
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
    if folder.exists() and not (folder / SPEC).is_file() and not _may_become_a_run(folder):
        raise InputError(f"{folder} exists and is not the folder of a run: choose another --out")
    with ExitStack() as stack:
        try:
            (folder / SHARDS).mkdir(parents=True, exist_ok=True)
            _lock(folder, part, stack)
            if (folder / SPEC).is_file():
                there = read_spec(folder)
                _refuse_another(folder, there, spec)
                spec = there
            else:
                write_durably(folder / SPEC, (json.dumps(asdict(spec), indent=2, ensure_ascii=False) + "\n").encode())
            run = Run(folder, spec, part)
        except OSError as e:
            raise InputError(f"{folder} cannot be used as the folder of a run: {e}") from e
        try:
            yield run
        finally:
            with suppress(OSError):  # rows can be read from where they are
                run.seal()


def _may_become_a_run(folder: Path) -> bool:
    """Whether a folder is empty, or holds no more than what a process left that was killed as it began."""
    if not folder.is_dir():
        return False
    ours = {SHARDS, f"{SPEC}.tmp"}
    return all(path.name in ours or path.suffix == ".lock" for path in folder.iterdir())


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


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there, whenever the process or the machine ends."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until what was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_stream(path: Path) -> pa.Table:
    """The whole rows of a stream, which may end anywhere."""
    batches = []
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            while True:
                batches.append(reader.read_next_batch())
    except (StopIteration, pa.ArrowInvalid, OSError):
        pass  # its end, or where it was cut
    return pa.Table.from_batches(batches, SCHEMA)


def read_rows(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a run, which may still be at work, in the order in which they were finished.

    Args:
        folder: of the run.
        columns: names of some; all if None.

    Raises:
        InputError: a shard cannot be read.
    """
    read_spec(folder)
    names = list(columns) if columns is not None else SCHEMA.names
    parts = []
    for path in sorted((folder / SHARDS).glob("*.parquet")):
        try:
            parts.append(pq.read_table(path, columns=names))
        except (OSError, pa.ArrowException) as e:
            raise InputError(
                f"{path} cannot be read ({e}): start the run again, which sets it aside and does its images again"
            ) from e
    for path in sorted((folder / SHARDS).glob("*.arrows")):
        if not path.with_suffix(".parquet").exists():
            parts.append(_read_stream(path).select(names))
    schema = pa.schema([SCHEMA.field(name) for name in names])
    return pa.concat_tables([part.cast(schema) for part in parts]) if parts else schema.empty_table()
