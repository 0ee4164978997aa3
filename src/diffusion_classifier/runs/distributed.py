"""Runs on many machines, or in many processes of one: Ray streams the images to workers that hold the model.

The folder of the run is the same as that of one process, so a run can be started on a laptop and resumed on a cluster.
Only the process that was started writes it; the images of a lost worker go to another.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..classifier import DiffusionClassifier
from ..errors import InputError
from .evaluation import OnStart, reproducible
from .evaluators import Evaluator
from .row import ResultRow, rows_to_table, table_to_rows
from .selection import Images
from .spec import RunSpec, read_spec_if_any
from .store import open_run

CHUNK = 64
"""Maximum number of images per chunk. Larger chunks pad fewer batches: the last ones of each chunk are padded."""


def chunk_for(num_images: int, num_workers: int) -> int:
    """Return the number of images per chunk: at most `CHUNK`, and few enough for eight chunks per worker."""
    return max(1, min(CHUNK, num_images // (8 * num_workers)))


@dataclass(frozen=True)
class Work:
    """Everything a worker needs to open the images and to load the model itself.

    Args:
        open_labelled: opens the images.
        load: arguments of `DiffusionClassifier.from_pretrained`.
        evaluator: what is computed for each image.
    """

    open_labelled: Callable[[], Images]
    load: Mapping[str, Any]
    evaluator: Evaluator


class _Worker:
    """Holds the model, and evaluates chunks of images."""

    def __init__(self, work: Work, spec: RunSpec, run: Sequence[int]) -> None:
        self._work, self._run = work, run
        self._source = work.open_labelled()
        classifier = DiffusionClassifier.from_pretrained(**work.load)
        self._open = ExitStack()  # for as long as the worker lives: nobody else uses its model
        self._classifier = self._open.enter_context(reproducible(classifier, spec))

    def __call__(self, chunk: Mapping[str, Any]) -> pa.Table:
        positions = [int(i) for i in chunk["position"]]
        return rows_to_table(self._work.evaluator.rows(self._classifier, self._source, positions, self._run))


def _prepare_spec(work: Work, begun: RunSpec | None, positions: Sequence[int], model: str, command: str) -> RunSpec:
    classifier = DiffusionClassifier.from_pretrained(**work.load)
    with reproducible(classifier, begun) as fixed:
        return work.evaluator.prepare_spec(fixed, work.open_labelled(), positions, model=model, command=command)


def evaluate_distributed(
    work: Work,
    source: Images,
    folder: Path,
    *,
    positions: Sequence[int] | None = None,
    address: str | None = None,
    num_workers: int = 1,
    gpus_per_worker: float = 0.0,
    cpus_per_worker: float = 1.0,
    chunk: int | None = None,
    model: str = "",
    command: str = "",
    on_start: OnStart = lambda *_: None,
) -> Iterator[ResultRow]:
    """Start or resume a run as `evaluation.evaluate` does, with several workers.

    Args:
        work: what the workers need.
        source: the images, as this process sees them.
        folder: folder of the run, which only this process writes.
        positions: positions of the images to evaluate; all if None.
        address: address of a Ray cluster, such as "auto" or "ray://head:10001"; one is started here if None.
        num_workers: number of workers, each of which holds the model.
        gpus_per_worker: number of GPUs per worker; may be less than 1.
        cpus_per_worker: number of threads of the network per worker, which Ray reserves.
        chunk: number of images per chunk; see `chunk_for` if None.
        model: name of the model, for the spec.
        command: command that started the run, for the spec.
        on_start: see `evaluation.OnStart`.

    Raises:
        InputError: Ray is not installed or cannot be reached, or has too few resources; as `evaluate`.
    """
    ray = _connect(address, num_workers, cpus_per_worker, gpus_per_worker)
    from ray.data import ActorPoolStrategy

    resources = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
    chosen = list(range(len(source))) if positions is None else list(positions)
    begun = read_spec_if_any(folder)
    try:
        spec = ray.get(ray.remote(**resources)(_prepare_spec).remote(work, begun, chosen, model, command))
    except ray.exceptions.RayTaskError as e:
        raise _cause(e) from e
    with open_run(folder, spec) as run:
        todo = [i for i in chosen if source.ids[i] not in run.done]
        on_start(len(chosen) - len(todo), len(chosen), [*spec.notes[len(source.notes) :], *run.notes])
        if not todo:
            return
        chunk = chunk or chunk_for(len(todo), num_workers)
        blocks = -(-len(todo) // chunk)
        data = ray.data.from_items([{"position": i} for i in todo], override_num_blocks=blocks)
        results = data.map_batches(
            _Worker,
            fn_constructor_args=(work, spec, chosen),
            batch_size=chunk,
            compute=ActorPoolStrategy(size=min(num_workers, blocks)),
            **resources,
        )
        try:
            for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in table_to_rows(table):
                    if row.id not in run.done:
                        run.write(row)
                        yield row
        except ray.exceptions.RayTaskError as e:
            raise _cause(e) from e


def _connect(address: str | None, num_workers: int, cpus: float, gpus: float) -> Any:
    """Start or join Ray, and return its module."""
    if num_workers < 1:
        raise InputError(f"the number of workers must be at least 1; got {num_workers}")
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise InputError(
            "evaluation by several workers needs Ray: pip install 'diffusion-classifier[distributed]'"
        ) from e
    if not ray.is_initialized():
        _check_reachable(address)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # hides advice for developers of Ray programs
        try:
            ray.init(address=address, log_to_driver=False, logging_level="warning", configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as e:
            where = "cannot be started" if address is None else f"cannot be reached at {address}"
            raise InputError(f"Ray {where}: {e}") from e
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    there = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if each * num_workers > there.get(name, 0):
            raise InputError(
                f"{num_workers} workers of {each:g} {name} each need {each * num_workers:g}, and Ray has "
                f"{there.get(name, 0):g}: ask for fewer, --workers, or less for each"
            )
    return ray


def _check_reachable(address: str | None) -> None:
    """Raise if nothing answers at the address within 10 seconds; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address or "")
    if found:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except OSError as e:
            raise InputError(f"Ray cannot be reached at {address}: {e}") from e


def _cause(e: Any) -> Exception:
    """Return the exception that a worker raised."""
    cause: Exception = e.cause if isinstance(e.cause, Exception) else e
    return cause
