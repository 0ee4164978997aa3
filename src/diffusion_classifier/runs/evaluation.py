"""A classifier on a data set: a run on disk that can end at any moment and goes on where it was."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from ..classifier import DiffusionClassifier
from ..data.captioned import CaptionedSource
from ..data.labelled import LabelledSource
from ..denoisers import Average, Conditioning
from ..denoisers.class_conditional import class_ids
from ..errors import InputError
from ..search.candidates import Template, as_templates
from ..search.classification import Classification
from ..search.jobs import ScoredImage
from ..search.settings import ScoringSettings
from ..search.shortlists import Screened, Shortlist, Tree
from ..tasks import Preset, Prompts, Task, class_prompts
from .spec import RunSpec, read_begun_spec
from .store import Part, Row, open_run

Images: TypeAlias = LabelledSource | CaptionedSource
OnStart = Callable[[int, int, Sequence[str]], None]
"""Called with the number of images that are done, of those that are wanted, and with notes."""

_LIBRARIES = ("diffusion-classifier", "torch", "diffusers", "transformers", "numpy", "Pillow")


def choose(source: Images, *, limit: int | None = None, subset: Sequence[str] | None = None) -> list[int]:
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
        what = f"{strange[0]!r} is not the id" if strange else "an empty subset holds no id"
        raise InputError(f"{what} of an image of {source.name}; the first are {', '.join(source.ids[:3])}")
    return sorted({position[id_] for id_ in subset})


def candidates(known: Sequence[str] | None, task: Task | None, source: LabelledSource) -> Sequence[str] | Sequence[int]:
    """The classes of a data set, as a model is asked for them.

    Args:
        known: those that the model knows; None where it reads text.
        task: which the images are of.
        source: the images.

    Raises:
        InputError: the model knows classes of its own, and not these; it reads text, and these are ids of WordNet, or
            numbers for ImageNet's.
    """
    names, ids_of_imagenet = source.class_names, None if task is None else task.imagenet_ids
    of_wordnet = all(re.fullmatch(r"n\d{8}", name) for name in names)
    if known is None:
        if of_wordnet or (ids_of_imagenet and all(name.isdecimal() for name in names)):
            raise InputError(
                f"the classes of {source.name} are called {', '.join(names[:3])} …, which says nothing to a model that "
                "reads text: give their names in this order, --class-names"
            )
        return names
    if source.prompt_names and [n.lower() for n in source.prompt_names] == [name.lower() for name in known]:
        return range(len(known))  # by name, classes that share one could not be told apart
    strange = {name.lower() for name in names} - {name.lower() for name in known}
    if not strange:  # in whatever order
        return names
    if task is not None and names == task.class_names and list(known) == list(map(str, range(len(names)))):
        return range(len(names))  # trained on the same classes, called by numbers
    # Networks of ImageNet name its classes in other words, but have them in its order, which is not of letters.
    if ids_of_imagenet and len(known) == 1000 and (of_wordnet or list(names) != sorted(names)):
        return ids_of_imagenet
    strange -= {synonym.strip().lower() for name in known for synonym in name.split(",")}
    if strange:
        name = next(name for name in names if name.lower() in strange)
        raise InputError(
            f"{source.name} has the class {name!r}, which the model does not know: its own are "
            f"{', '.join(known[:12])}{' …' if len(known) > 12 else ''}; other names can be given, --class-names"
        )
    class_ids(names, known)  # complains of a synonym that several classes have
    return names


class Evaluator(Protocol):
    """What is asked of each image; a model can be asked it in any process."""

    def prepare_spec(
        self, classifier: Any, source: Any, positions: Sequence[int], *, model: str = "", command: str = ""
    ) -> RunSpec:
        """The spec of a run; see `evaluate`. Readies the model for it."""

    def answers(self, classifier: Any, source: Any, positions: Sequence[int], run: Sequence[int]) -> Iterator[Row]:
        """A row for each of these images, as they are done; they are some of those of the run."""


@dataclass(frozen=True)
class ClassEvaluator:
    """Which of the data set's classes is it?

    Args:
        task: which the images are of.
        template: as in `DiffusionClassifier.stream`, and so the others; the task's for a model that reads text if None.
        average: see there.
        shortlist: see there.
        store_errors: keep error tables, for `rescore`.
        also: other losses, whose error tables are kept too.
        options: strategy, timesteps, loss, weights, seed, reduction, temperature, prior; see there.
        preset: of the task, for its prompts.
    """

    task: Task | None = None
    template: Template = None
    average: Average = "error"
    shortlist: Shortlist | None = None
    store_errors: bool = False
    also: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset | None = None

    def prompts(self, known: Sequence[str] | None, source: LabelledSource) -> Prompts:
        """Names and templates, for a model that knows these classes; any text if None.

        Raises:
            InputError: as `candidates` and `tasks.class_prompts`.
        """
        template = as_templates(self.template)
        return class_prompts(source, self.task, known=known, preset=self.preset, template=template)

    def _asked(self, classifier: DiffusionClassifier, source: LabelledSource) -> tuple[Prompts, dict[str, Any]]:
        """Prompts, and the arguments of `Candidates.named` that they make."""
        known = classifier.denoiser.class_names
        prompts = self.prompts(known, source)
        classes = candidates(known, self.task, replace(source, class_names=prompts.names))
        by_index = not isinstance(classes[0], str)
        asked = {
            "classnames": classes if by_index else source.class_names,
            "prompt_names": None if by_index else classes,
            "template": prompts.templates,
            "average": self.average,
        }
        return prompts, asked

    def prepare_spec(
        self,
        classifier: DiffusionClassifier,
        source: LabelledSource,
        positions: Sequence[int],
        *,
        model: str = "",
        command: str = "",
    ) -> RunSpec:
        """See `Evaluator`."""
        prompts, asked = self._asked(classifier, source)
        notes = prompts.notes
        if isinstance(self.shortlist, Screened) and len(prompts.templates or ()) > 1:
            notes += (f"the shortlist is by the first template alone, {(prompts.templates or ())[0]!r}",)
        names, conditioning = classifier.scorer.candidates.named(**asked)
        return RunSpec(
            **kept_errors(self.store_errors, self.also),
            **about_run(source, positions, model, command, notes),
            **about_reading(classifier, classifier.settings_for(names, **self.options), conditioning),
            class_names=source.class_names,
            templates=prompts.templates,
            prompt_names=None if prompts.names == source.class_names else prompts.names,
            average=self.average,
            shortlist=None if self.shortlist is None else _about_shortlist(self.shortlist),
            task=None if self.task is None else self.task.name,
            metric=self.task.metric if self.task else "accuracy",
        )

    def answers(
        self,
        classifier: DiffusionClassifier,
        source: LabelledSource,
        positions: Sequence[int],
        run: Sequence[int],  # noqa: ARG002 - of the protocol
    ) -> Iterator[Row]:
        """See `Evaluator`."""
        _, asked = self._asked(classifier, source)
        results = classifier.enumerated(
            (source.read(i) for i in positions),
            **asked,
            shortlist=self.shortlist,
            extra_losses=self.also,
            **self.options,
        )
        for place, result in results:
            yield _as_row(result, source, positions[place], self.store_errors)


def _about_shortlist(shortlist: Shortlist) -> str:
    """As the command line spells it, and what else decides what it keeps."""
    settings = {f.name: getattr(shortlist, f.name) for f in fields(shortlist)} if is_dataclass(shortlist) else {}
    if isinstance(shortlist, Tree):
        settings["tree"] = _digest(iter([json.dumps(shortlist.branches)]))
    told = (f"{name} {settings[name]}" for name in ("keep", "num_draws", "tree") if name in settings)
    return ", ".join((str(shortlist), *told))


def about_run(
    source: Images, positions: Sequence[int], model: str, command: str, notes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """What specs of all runs say of their images and of themselves."""
    return {
        "data": source.fingerprint(),
        "selection": _digest(source.ids[i] for i in positions),
        "num_images": len(positions),
        "source": source.name,
        "shift": getattr(source, "shift", ""),
        "notes": (*source.notes, *notes),
        "model": model,
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def about_reading(
    classifier: DiffusionClassifier, reading: ScoringSettings, conditioning: Conditioning
) -> dict[str, Any]:
    """What specs say of a diffusion model, and of how it is read. Readies it."""
    denoiser, lags = classifier.denoiser, getattr(reading.strategy, "lags", None)
    settings = classifier.scorer.table_settings(reading)
    return {
        "weights_of_model": denoiser.fingerprint(),
        "image_size": denoiser.image_size,
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "lags": None if lags is None else _digest(map(repr, lags)),
        "device": str(denoiser.device),
        "batch_size": classifier.scorer.prepare(conditioning),
        "channels_last": denoiser.channels_last,
        "compiled": denoiser.compiled,
        **{f.name: settings[f.name] for f in fields(RunSpec) if f.name in settings},
    }


def kept_errors(store_errors: bool, also: tuple[str, ...]) -> dict[str, Any]:
    """What specs say of the error tables in rows.

    Raises:
        InputError: those of other losses are to be kept, and none of the run's own.
    """
    if also and not store_errors:
        raise InputError("errors of other losses can be kept only where errors are kept at all")
    return {"store_errors": store_errors, "also": also}


def evaluate(
    classifier: Any,
    source: Images,
    folder: Path,
    question: Evaluator,
    *,
    positions: Sequence[int] | None = None,
    part: Part | None = None,
    model: str = "",
    command: str = "",
    on_start: OnStart = lambda *_: None,
) -> Iterator[Row]:
    """Evaluate, or go on evaluating, and yield each row when it is safe on disk.

    Not a bit of an error depends on when the work was broken off: every network call has the same number of rows, and
    rows share no work. The classifier is afterwards as before.

    Args:
        classifier: the model, of the kind that the question is for.
        source: the images, of that kind too.
        folder: of the run.
        question: what is asked of each.
        positions: of the images to evaluate; see `choose`.
        part: of the run, where several processes share it.
        model: what it is called.
        command: that began the run, for its spec.
        on_start: called with the number of images that are done, of those that are wanted, and with notes.

    Raises:
        InputError: as the question's `prepare_spec`, and as `runs.open_run`.
    """
    chosen = list(range(len(source))) if positions is None else list(positions)
    part = part or Part()
    with reproducible(classifier, read_begun_spec(folder)) as fixed:
        spec = question.prepare_spec(fixed, source, chosen, model=model, command=command)
        with open_run(folder, spec, part) as run:
            mine = chosen[part.index :: part.count]
            todo = [i for i in mine if source.ids[i] not in run.done]
            on_start(len(mine) - len(todo), len(mine), [*spec.notes[len(source.notes) :], *run.notes])
            for row in question.answers(fixed, source, todo, chosen):
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


def _digest(values: Iterator[str]) -> str:
    return hashlib.sha256("\0".join(values).encode()).hexdigest()


def _as_row(result: Classification, source: LabelledSource, position: int, store_errors: bool) -> Row:
    row: Row = {"id": source.ids[position], "label": source.label(position)}
    if result.failure is not None:
        return row | {"status": "failed", "reason": result.failure}
    name = dict(zip(result.class_names, source.class_names, strict=True))
    row |= answer_of(result) | prediction_of(result)
    row["prediction"], row["undecided"] = name.get(row["prediction"]), [name[label] for label in row["undecided"]]
    return row | errors_of(result) if store_errors else row


def answer_of(result: Classification) -> Row:
    """What rows of all runs say of an answer."""
    return {
        "posterior": result.posterior.tolist(),
        "confidence": result.confidence,
        "num_evaluations": result.num_evaluations,
        "cost": result.cost,
        "seconds": result.seconds,
        "status": "done",
    }


def prediction_of(result: Classification) -> Row:
    """Return what rows say of the label: none is predicted where float32 does not tell some apart."""
    tied = (str(result.label), *result.ties) if result.ties else ()
    return {"prediction": None if tied else result.label, "undecided": list(result.undecided or tied)}


def errors_of(result: Classification | ScoredImage) -> Row:
    """The error tables of a row."""
    also = {loss: table.tolist() for loss, table in result.extra_losses.items()}
    return {"errors": result.errors.tolist(), "timesteps": result.t.double().tolist(), "also": list(also.items())}
