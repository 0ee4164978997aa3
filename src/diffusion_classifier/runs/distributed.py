"""A run on many machines, or many processes of one: Ray streams the images to workers that hold the model.

No mathematics is here. The folder of the run is the same as that of one process, so that a run may begin on a laptop
and go on in a cluster. One process writes it, the one that was started; a lost worker's images go to another.
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
from .evaluation import Evaluator, Images, OnStart, reproducible
from .spec import RunSpec, read_begun_spec
from .store import SCHEMA, Row, open_run

CHUNK = 64
"""Images that a worker is given at once, at most: the last of its batches hold rows that count for nothing."""


def chunk_for(num_images: int, num_workers: int) -> int:
    """Images that a worker is given at once: fewer, where each would get less than eight chunks and wait for others."""
    return max(1, min(CHUNK, num_images // (8 * num_workers)))


@dataclass(frozen=True)
class Work:
    """What a worker needs to know; it opens images and loads the model itself.

    Args:
        open_labelled: opens the images.
        load: arguments of `DiffusionClassifier.from_pretrained`.
        question: what is asked of each image.
    """

    open_labelled: Callable[[], Images]
    load: Mapping[str, Any]
    question: Evaluator


class _Worker:
    """Holds the model, and answers for chunks of images."""

    def __init__(self, work: Work, spec: RunSpec, run: Sequence[int]) -> None:
        self._work, self._run = work, run
        self._source = work.open_labelled()
        classifier = DiffusionClassifier.from_pretrained(**work.load)
        self._open = ExitStack()  # for as long as the worker lives: nobody else uses its model
        self._classifier = self._open.enter_context(reproducible(classifier, spec))

    def __call__(self, chunk: Mapping[str, Any]) -> pa.Table:
        positions = [int(i) for i in chunk["position"]]
        rows = list(self._work.question.answers(self._classifier, self._source, positions, self._run))
        return pa.Table.from_pylist(rows, SCHEMA)


def _describe(work: Work, begun: RunSpec | None, positions: Sequence[int], model: str, command: str) -> RunSpec:
    classifier = DiffusionClassifier.from_pretrained(**work.load)
    with reproducible(classifier, begun) as fixed:
        return work.question.prepare_spec(fixed, work.open_labelled(), positions, model=model, command=command)


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
) -> Iterator[Row]:
    """As `evaluate.evaluate`, by workers.

    Args:
        work: for the workers.
        source: the images, as this process sees them.
        folder: of the run, which this process alone writes.
        positions: of the images to evaluate.
        address: of a Ray cluster, such as "auto" or "ray://head:10001"; one is started here if None.
        num_workers: that hold the model.
        gpus_per_worker: may be less than one.
        cpus_per_worker: threads that a network may use, and that Ray sets aside.
        chunk: images that a worker is given at once; see `chunk_for` if None.
        model: what it is called.
        command: that began the run.
        on_start: see there.

    Raises:
        InputError: Ray is not installed or cannot be reached, there are not so many workers to be had, and as
            `evaluate`.
    """
    ray = _connect(address, num_workers, cpus_per_worker, gpus_per_worker)
    from ray.data import ActorPoolStrategy

    resources = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
    chosen = list(range(len(source))) if positions is None else list(positions)
    begun = read_begun_spec(folder)
    try:
        spec = ray.get(ray.remote(**resources)(_describe).remote(work, begun, chosen, model, command))
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
                for row in table.to_pylist():
                    if row["id"] not in run.done:
                        run.write(row)
                        yield row
        except ray.exceptions.RayTaskError as e:
            raise _cause(e) from e


def _connect(address: str | None, num_workers: int, cpus: float, gpus: float) -> Any:
    """Ray itself, started or joined."""
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
        _refuse_unreachable(address)
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else advice for those who write such programs
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


def _refuse_unreachable(address: str | None) -> None:
    """Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address or "")
    if found:
        try:
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        except OSError as e:
            raise InputError(f"Ray cannot be reached at {address}: {e}") from e


def _cause(e: Any) -> Exception:
    """What a worker complained of, as if it had happened here."""
    cause: Exception = e.cause if isinstance(e.cause, Exception) else e
    return cause
