"""A classifier on a data set: a run on disk that can end at any moment and goes on where it was."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .candidates import Template, as_templates
from .classifier import DiffusionClassifier
from .denoisers import Average
from .exceptions import InputError
from .posterior import Classification
from .runs import Part, Row, open_run
from .shortlists import Shortlist
from .sources import Source
from .spec import SPEC, RunSpec, read_spec
from .tasks import Task

OnStart = Callable[[int, int, Sequence[str]], None]
"""Called with the number of images that are done, of those that are wanted, and with notes."""

_LIBRARIES = ("diffusion-classifier", "torch", "diffusers", "transformers", "numpy", "Pillow")


def choose(source: Source, *, limit: int | None = None, subset: Sequence[str] | None = None) -> list[int]:
    """Positions of the images to evaluate, ascending.

    Args:
        source: the images.
        limit: so many of them, evenly spread, since the first ones may all be of one class; all if None.
        subset: ids of those to take.

    Raises:
        InputError: both were given; a limit below 1 or above the number of images; an id that is not there.
    """
    if limit is not None and subset is not None:
        raise InputError("give a limit or a subset, not both")
    if limit is not None:
        if not 1 <= limit <= len(source):
            raise InputError(f"the limit must be between 1 and the {len(source)} images of {source.name}; got {limit}")
        return [i * len(source) // limit for i in range(limit)]
    if subset is None:
        return list(range(len(source)))
    position = {id_: i for i, id_ in enumerate(source.ids)}
    strange = [id_ for id_ in subset if id_ not in position]
    if strange or not subset:
        what = f"{strange[0]!r} is not" if strange else "an empty subset holds no"
        raise InputError(f"{what} the id of an image of {source.name}; the first are {', '.join(source.ids[:3])}")
    return sorted({position[id_] for id_ in subset})


def candidates(classifier: DiffusionClassifier, task: Task | None, source: Source) -> Sequence[str] | Sequence[int]:
    """The classes of a data set, as the model is asked for them.

    Raises:
        InputError: the model knows classes of its own, and not these.
    """
    known = classifier.denoiser.class_names
    if known is None:
        return source.class_names
    if task is not None and task.imagenet_ids is not None and len(known) == 1000:
        return task.imagenet_ids
    strange = {name.lower() for name in source.class_names} - {name.lower() for name in known}
    if strange:
        name = next(name for name in source.class_names if name.lower() in strange)
        raise InputError(
            f"{source.name} has the class {name!r}, which the model does not know: its own are "
            f"{', '.join(known[:12])}{' …' if len(known) > 12 else ''}; other names can be given, --class-names"
        )
    return source.class_names


@dataclass(frozen=True)
class Question:
    """What is asked of each image; a classifier can be asked it in any process.

    Args:
        task: which the images are of.
        template: as in `DiffusionClassifier.stream`, and so the others; the task's for a model that reads text if None.
        average: see there.
        shortlist: see there.
        store_errors: keep error tables, for `rescore`.
        also: other losses, whose error tables are kept too.
        options: strategy, timesteps, loss, weights, seed, reduction, temperature, prior; see there.
    """

    task: Task | None = None
    template: Template = None
    average: Average = "error"
    shortlist: Shortlist | None = None
    store_errors: bool = False
    also: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def prompts(self, classifier: DiffusionClassifier, source: Source) -> dict[str, Any]:
        """Arguments that make classes conditions."""
        template = self.template
        if template is None and classifier.denoiser.class_names is None:
            template = self.task.template if self.task else source.templates[:1] or None
        return {"template": template, "average": self.average}


def describe(
    classifier: DiffusionClassifier,
    source: Source,
    question: Question,
    positions: Sequence[int],
    *,
    model: str = "",
    command: str = "",
) -> RunSpec:
    """The spec of a run; see `evaluate`. Readies the classifier for it."""
    if question.also and not question.store_errors:
        raise InputError("errors of other losses can be kept only where errors are kept at all")
    prompts, denoiser = question.prompts(classifier, source), classifier.denoiser
    classifier.full_batches = True
    names, conditioning = classifier.condition(candidates(classifier, question.task, source), **prompts)
    reading, task = classifier.reading(names, **question.options), question.task
    settings, lags = classifier.table_settings(reading), getattr(reading.strategy, "lags", None)
    return RunSpec(
        data=source.fingerprint(),
        selection=_digest(source.ids[i] for i in positions),
        num_images=len(positions),
        class_names=source.class_names,
        weights_of_model=denoiser.fingerprint(),
        templates=as_templates(prompts["template"]),
        average=question.average,
        image_size=denoiser.image_size,
        dtype=str(denoiser.dtype).removeprefix("torch."),
        lags=None if lags is None else _digest(map(repr, lags)),
        shortlist=None if question.shortlist is None else str(question.shortlist),
        store_errors=question.store_errors,
        also=question.also,
        task=None if task is None else task.name,
        model=model,
        source=source.name,
        metric=task.metric if task else "accuracy",
        device=str(denoiser.device),
        batch_size=classifier.prepare(conditioning),
        compiled=denoiser.compiled,
        command=command,
        versions={name: importlib.metadata.version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **{f.name: settings[f.name] for f in fields(RunSpec) if f.name in settings},
    )


def answers(
    classifier: DiffusionClassifier, source: Source, question: Question, positions: Sequence[int]
) -> Iterator[Row]:
    """A row for each of these images, as they are done."""
    results = classifier.enumerated(
        (source.read(i) for i in positions),
        candidates(classifier, question.task, source),
        **question.prompts(classifier, source),
        shortlist=question.shortlist,
        also=question.also,
        **question.options,
    )
    for place, result in results:
        yield _as_row(result, source, positions[place], question.store_errors)


def evaluate(
    classifier: DiffusionClassifier,
    source: Source,
    folder: Path,
    question: Question,
    *,
    positions: Sequence[int] | None = None,
    part: Part | None = None,
    model: str = "",
    command: str = "",
    on_start: OnStart = lambda *_: None,
) -> Iterator[Row]:
    """Evaluate, or go on evaluating, and yield each row when it is safe on disk.

    Not a bit of an error depends on when the work was broken off: every network call has the same number of rows, and
    rows share no work.

    Args:
        classifier: the model.
        source: the images.
        folder: of the run.
        question: what is asked of each.
        positions: of the images to evaluate; see `choose`.
        part: of the run, where several processes share it.
        model: what it is called.
        command: that began the run, for its spec.
        on_start: called with the number of images that are done, of those that are wanted, and with notes.

    Raises:
        InputError: as `DiffusionClassifier.stream`, `candidates` and `runs.open_run`.
    """
    chosen = list(range(len(source))) if positions is None else list(positions)
    part = part or Part()
    classifier.batch_size = kept_batch_size(folder, classifier.batch_size)
    spec = describe(classifier, source, question, chosen, model=model, command=command)
    with open_run(folder, spec, part) as run:
        mine = chosen[part.index :: part.count]
        todo = [i for i in mine if source.ids[i] not in run.done]
        on_start(len(mine) - len(todo), len(mine), run.notes)
        for row in answers(classifier, source, question, todo):
            run.write(row)
            yield row


def kept_batch_size(folder: Path, batch_size: int | str) -> int | str:
    """That of a run which is gone on with, where it is left to us: how sums are rounded depends on it."""
    return read_spec(folder).batch_size if batch_size == "auto" and (folder / SPEC).is_file() else batch_size


def _digest(values: Iterator[str]) -> str:
    return hashlib.sha256("\0".join(values).encode()).hexdigest()


def _as_row(result: Classification, source: Source, position: int, store_errors: bool) -> Row:
    row: Row = {"id": source.ids[position], "label": source.class_names[source.labels[position]]}
    if result.failure is not None:
        return row | {"status": "failed", "reason": result.failure}
    name = dict(zip(result.class_names, source.class_names, strict=True))
    row |= {
        "prediction": name[result.label] if result.label is not None else None,
        "posterior": result.posterior.tolist(),
        "confidence": result.confidence,
        "undecided": [name[label] for label in result.undecided],
        "num_evaluations": result.num_evaluations,
        "cost": result.cost,
        "seconds": result.seconds,
        "status": "done",
    }
    if store_errors:
        also = {loss: table.tolist() for loss, table in result.also.items()}
        row |= {"errors": result.errors.tolist(), "timesteps": result.t.double().tolist(), "also": list(also.items())}
    return row
