"""Evaluate a model on a data set: a run on disk that can be interrupted at any moment and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..classifier import DiffusionClassifier
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
    rows and rows share no work. The classifier is afterwards as it was before.

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
    with reproducible(classifier, read_spec_if_any(folder)) as fixed:
        spec = evaluator.prepare_spec(fixed, source, chosen, model=model, command=command)
        with open_run(folder, spec, part) as run:
            mine = chosen[part.index :: part.count]
            todo = [i for i in mine if source.ids[i] not in run.done]
            on_start(len(mine) - len(todo), len(mine), [*spec.notes[len(source.notes) :], *run.notes])
            for row in evaluator.rows(fixed, source, todo, chosen):
                run.write(row)
                yield row


@contextmanager
def reproducible(classifier: Any, begun: RunSpec | None) -> Iterator[Any]:
    """Yield the model such that errors do not depend, bit for bit, on when a run was interrupted.

    A diffusion model has the batch size, unless the user chose one, and the memory layout of the run within the
    context, because the rounding of sums depends on them. Afterwards it is as before.
    """
    if not isinstance(classifier, DiffusionClassifier):
        yield classifier
        return
    before = (None, None) if begun is None else (begun.batch_size, begun.channels_last)
    with classifier.fixed_batches(*before) as fixed:
        yield fixed
