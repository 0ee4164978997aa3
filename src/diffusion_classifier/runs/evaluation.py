"""Evaluate a model on a data set: a run on disk that can be interrupted at any moment and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..classifier import DiffusionClassifier
from ..denoisers.tuning import set_layout
from .evaluators import Evaluator
from .row import ResultRow
from .selection import Images
from .spec import RunSpec, read_spec_if_any
from .store import Part, open_run

OnStart = Callable[[int, int, Sequence[str]], None]
"""Callback at the start: (number of images that are done, number of images in total, notes)."""


def evaluate(
    classifier: Any,
    source: Images,
    folder: Path,
    evaluator: Evaluator,
    *,
    positions: Sequence[int] | None = None,
    part: Part | None = None,
    model: str = "",
    command: str = "",
    on_start: OnStart = lambda *_: None,
) -> Iterator[ResultRow]:
    """Start or resume a run, and yield each row once it is safe on disk.

    Errors are bitwise identical wherever the run was interrupted, because all network calls have the same number of
    rows and rows share no work.

    Args:
        classifier: the model, of the kind that the evaluator takes.
        source: the images, of the kind that the evaluator takes.
        folder: folder of the run.
        evaluator: what is computed for each image.
        positions: positions of the images to evaluate, see `selection.choose`; all if None.
        part: part of the run, if several processes share it.
        model: name of the model, for the spec.
        command: command that started the run, for the spec.
        on_start: see `OnStart`.

    Raises:
        InputError: as the evaluator's `prepare_spec`, and as `store.open_run`.
    """
    chosen = list(range(len(source))) if positions is None else list(positions)
    part = part or Part()
    if begun := read_spec_if_any(folder):
        restore_tuning(classifier, begun)
    spec = evaluator.prepare_spec(classifier, source, chosen, model=model, command=command)
    with open_run(folder, spec, part) as run:
        mine = chosen[part.index :: part.count]
        todo = [i for i in mine if source.ids[i] not in run.done]
        on_start(len(mine) - len(todo), len(mine), [*spec.notes[len(source.notes) :], *run.notes])
        for row in evaluator.rows(classifier, source, todo, chosen):
            run.write(row)
            yield row


def restore_tuning(classifier: Any, spec: RunSpec) -> None:
    """Give a model the memory layout of a run, and its batch size if that is "auto": rounding depends on both."""
    if isinstance(classifier, DiffusionClassifier):
        if classifier.scorer.batch_size == "auto":
            classifier.scorer.batch_size = spec.batch_size
        set_layout(classifier.denoiser, spec.channels_last)
