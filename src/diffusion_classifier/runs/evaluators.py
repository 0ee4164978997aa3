"""Evaluators: what a run computes for each image, for diffusion models and one-pass baselines, classes and captions.

Shape legend: C captions of an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from ..baselines.base import Baseline
from ..classifier import DiffusionClassifier
from ..data.captioned import CaptionedSource
from ..data.images import ImageError, load_image
from ..data.labelled import LabelledSource
from ..denoisers import Average
from ..errors import InputError
from ..search.candidates import Template, as_templates
from ..search.caption_scores import caption_scores
from ..search.posterior import scale_of
from ..search.settings import ScoringSettings
from ..search.shortlists import Screened, Shortlist
from ..search.strategies import TIE
from ..tasks import CaptionTask, Preset, Prompts, Task, class_prompts
from .row import ResultRow
from .selection import Images, candidates
from .spec import WITHOUT_DRAWS, RunSpec
from .spec_fields import about_captions, about_errors, about_reading, about_run, about_shortlist

Names: TypeAlias = Sequence[str] | Sequence[int]
Choices: TypeAlias = Callable[[int], tuple[ResultRow, Sequence[str], Sequence[int]]]
"""Position of an image → its row, the names of its candidates, and their indices among all."""
WITH_NULL = "fixed:64"
"""Default strategy if the null condition is evaluated too, which needs all draws."""


class Evaluator(Protocol):
    """Protocol of an evaluation: its spec, and its rows. Must be picklable."""

    def prepare_spec(
        self, classifier: Any, source: Any, positions: Sequence[int], *, model: str = "", command: str = ""
    ) -> RunSpec:
        """Prepare the model and return the spec of a run over the images at `positions`; arguments as `evaluate`.

        Side effects on a diffusion model: every network call gets the same number of rows, and the network is tuned
        and compiled, because batch size and memory layout are part of the spec.
        """

    def rows(self, classifier: Any, source: Any, positions: Sequence[int], run: Sequence[int]) -> Iterator[ResultRow]:
        """Yield the rows of the images at `positions`, as they are finished; `run` has all positions of the run."""


@dataclass(frozen=True)
class ClassEvaluator:
    """Classify each image among the classes of its data set with a diffusion model.

    Args:
        task: task of the images.
        template: as in `DiffusionClassifier.stream`; the task's for a text-to-image model if None.
        average: as in `DiffusionClassifier.stream`.
        shortlist: as in `DiffusionClassifier.stream`.
        store_errors: whether to store error tables, for `rescore`.
        extra_losses: other losses whose error tables are stored too.
        options: strategy, timesteps, loss, weights, seed, reduction, temperature and prior of
            `DiffusionClassifier.stream`.
        preset: preset of the task, for its prompts.
    """

    task: Task | None = None
    template: Template = None
    average: Average = "error"
    shortlist: Shortlist | None = None
    store_errors: bool = False
    extra_losses: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    preset: Preset | None = None

    def prompts(self, known: Sequence[str] | None, source: LabelledSource) -> Prompts:
        """Return names and templates for a model that knows the classes `known`; any text if None.

        Raises:
            InputError: as `candidates` and `tasks.class_prompts`.
        """
        template = as_templates(self.template)
        return class_prompts(source, self.task, known=known, preset=self.preset, template=template)

    def _conditions(self, classifier: DiffusionClassifier, source: LabelledSource) -> tuple[Prompts, dict[str, Any]]:
        """Return the prompts, and the arguments for `DiffusionClassifier.condition` that they make."""
        known = classifier.denoiser.class_names
        prompts = self.prompts(known, source)
        classes = candidates(known, self.task, replace(source, class_names=prompts.names))
        by_index = not isinstance(classes[0], str)
        conditions = {
            "classnames": classes if by_index else source.class_names,
            "prompt_names": None if by_index else classes,
            "template": prompts.templates,
            "average": self.average,
        }
        return prompts, conditions

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
        prompts, conditions = self._conditions(classifier, source)
        notes = prompts.notes
        if isinstance(self.shortlist, Screened) and len(prompts.templates or ()) > 1:
            notes += (f"the shortlist is by the first template alone, {(prompts.templates or ())[0]!r}",)
        names, conditioning = classifier.scorer.candidates.named(**conditions)
        return RunSpec(
            **about_errors(self.store_errors, self.extra_losses),
            **about_run(source, positions, model, command, notes),
            **about_reading(classifier, classifier.settings_for(names, **self.options), conditioning),
            class_names=source.class_names,
            templates=prompts.templates,
            prompt_names=None if prompts.names == source.class_names else prompts.names,
            average=self.average,
            shortlist=None if self.shortlist is None else about_shortlist(self.shortlist),
            task=None if self.task is None else self.task.name,
            metric=self.task.metric if self.task else "accuracy",
        )

    def rows(
        self,
        classifier: DiffusionClassifier,
        source: LabelledSource,
        positions: Sequence[int],
        run: Sequence[int],  # noqa: ARG002 - of the protocol
    ) -> Iterator[ResultRow]:
        """See `Evaluator`."""
        _, conditions = self._conditions(classifier, source)
        results = classifier.enumerated(
            (source.read(i) for i in positions),
            **conditions,
            shortlist=self.shortlist,
            extra_losses=self.extra_losses,
            **self.options,
        )
        for place, result in results:
            i = positions[place]
            own = None if result.failure else dict(zip(result.class_names, source.class_names, strict=True))
            row = ResultRow(source.ids[i], source.label(i)).with_result(result, own)
            yield row.with_errors(result) if self.store_errors and row.done else row


def _all_captions(source: CaptionedSource, run: Sequence[int]) -> list[str]:
    """Return the distinct captions of a run, in an order that does not depend on which images are done."""
    return list(dict.fromkeys(caption for i in run for caption in source.captions[i]))


def _caption_row(source: CaptionedSource, i: int) -> ResultRow:
    """Return what is known of an image before it is evaluated."""
    captions = source.captions[i]
    tag = source.tags[i] if source.tags else None
    return ResultRow(source.ids[i], captions[source.truth[i]], candidates=list(captions), tag=tag)


@dataclass(frozen=True)
class CaptionEvaluator:
    """Choose the true one among the captions of each image with a diffusion model.

    Args:
        task: task of the images.
        unconditional: whether to evaluate the null condition too, which image scores need. Default: for pairs, if the
            model has one and the settings allow it.
        template: prompt template around each caption, as in `DiffusionClassifier.choices`; none if None.
        average: as in `DiffusionClassifier.choices`.
        store_errors: whether to store error tables, for `rescore`.
        extra_losses: other losses whose error tables are stored too.
        options: strategy, timesteps, loss, weights, seed, reduction and temperature of `DiffusionClassifier.choices`.
    """

    task: CaptionTask | None = None
    unconditional: bool | None = None
    template: Template = None
    average: Average = "error"
    store_errors: bool = False
    extra_losses: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def prepare_spec(
        self,
        classifier: DiffusionClassifier,
        source: CaptionedSource,
        positions: Sequence[int],
        *,
        model: str = "",
        command: str = "",
    ) -> RunSpec:
        """See `Evaluator`."""
        captions = _all_captions(source, positions)
        _check_known_captions(classifier, source, captions)
        reading, unconditional = self._settled(classifier, source, positions)
        conditioning = classifier.scorer.candidates.encode(captions, self.template, self.average)
        return RunSpec(
            **about_errors(self.store_errors, self.extra_losses),
            **about_run(source, positions, model, command),
            **about_reading(classifier, reading, conditioning),
            **about_captions(source),
            unconditional=unconditional,
            templates=as_templates(self.template),
            average=self.average,
            shortlist=None,
            task=None if self.task is None else self.task.name,
        )

    def rows(
        self, classifier: DiffusionClassifier, source: CaptionedSource, positions: Sequence[int], run: Sequence[int]
    ) -> Iterator[ResultRow]:
        """See `Evaluator`."""
        reading, unconditional = self._settled(classifier, source, run)
        scale = scale_of(classifier.scorer.num_dimensions, reading.reduction, reading.temperature)
        results = classifier.choices(
            (source.read(i) for i in positions),
            [source.captions[i] for i in positions],
            among=_all_captions(source, run),
            unconditional=unconditional,
            template=self.template,
            average=self.average,
            extra_losses=self.extra_losses,
            **{**self.options, "strategy": reading.strategy},
        )
        for place, result, scored in results:
            row = _caption_row(source, positions[place]).with_result(result)
            if row.done and unconditional:
                scores = caption_scores(scored, result.class_names, True, scale)
                row = replace(row, match_scores=[score.score for score in scores])
            yield row.with_errors(scored) if self.store_errors and row.done else row

    def _settled(
        self, classifier: DiffusionClassifier, source: CaptionedSource, run: Sequence[int]
    ) -> tuple[ScoringSettings, bool]:
        """Return the settings, and whether the null condition is evaluated."""
        wanted = (
            source.paired and classifier.scorer.has_null_condition if self.unconditional is None else self.unconditional
        )
        options = dict(self.options)
        if wanted and options.get("strategy") is None:
            options["strategy"] = WITH_NULL
        longest = max((source.captions[i] for i in run), key=len)
        reading = classifier.settings_for(longest, **options)
        if not wanted or (reading.strategy.exhaustive and reading.draws.timesteps.kind != "random"):
            return reading, wanted
        if self.unconditional is None:
            return reading, False
        raise InputError(
            "the null condition is compared over all draws, at the same times of all images: leave out "
            f"--unconditional, or use fixed:DRAWS in place of {reading.strategy}, and timesteps other than random"
        )


def _check_known_captions(classifier: DiffusionClassifier, source: CaptionedSource, captions: Sequence[str]) -> None:
    """Raise if a class-conditional model has no classes of the captions' names."""
    known = classifier.denoiser.class_names
    if known is not None and not {caption.lower() for caption in captions} <= {name.lower() for name in known}:
        raise InputError(
            f"{source.name} has captions, which this model does not read: it knows {len(known)} classes; take one that "
            "reads text"
        )


@dataclass(frozen=True)
class BaselineEvaluator:
    """Evaluate a one-pass baseline on classes or captions.

    Args:
        task: task of the images.
        template: prompt template around each class or caption, for contrastive models. For classes the default is the
            data set's or the task's. The embeddings of several templates are averaged, as CLIP's authors do.
    """

    task: Task | CaptionTask | None = None
    template: Template = None

    def prepare_spec(
        self, classifier: Baseline, source: Images, positions: Sequence[int], *, model: str = "", command: str = ""
    ) -> RunSpec:
        """See `Evaluator`. A baseline needs no preparation."""
        self._choices(classifier, source, positions)  # raises for names that the model does not know
        prompts = self.prompts(classifier.class_names, source)
        if isinstance(source, CaptionedSource):
            candidates_of_run = about_captions(source)
        else:
            candidates_of_run = {
                "class_names": source.class_names,
                "prompt_names": None if prompts.names == source.class_names else prompts.names,
                "metric": self.task.metric if isinstance(self.task, Task) else "accuracy",
            }
        return RunSpec(
            **about_run(source, positions, model, command, prompts.notes),
            **candidates_of_run,
            **WITHOUT_DRAWS,
            model_kind=classifier.model_kind,
            weights_of_model=classifier.fingerprint(),
            templates=prompts.templates,
            image_size=classifier.image_size,
            dtype=str(classifier.dtype).removeprefix("torch."),
            device=str(classifier.device),
            batch_size=1,
            task=None if self.task is None else self.task.name,
        )

    def rows(
        self, classifier: Baseline, source: Images, positions: Sequence[int], run: Sequence[int]
    ) -> Iterator[ResultRow]:
        """See `Evaluator`."""
        names, choices = self._choices(classifier, source, run)
        scorer = classifier.logits_for(names, self.prompts(classifier.class_names, source).templates or ())
        for i in positions:
            row, own, among = choices(i)
            started = time.perf_counter()
            try:
                picture = load_image(source.read(i), source.ids[i])
                logits = scorer(picture.image, among).double().cpu()
            except ImageError as e:
                yield replace(row, status="failed", reason=str(e).removeprefix(f"{source.ids[i]}: "))
                continue
            best = logits.max()
            tied = [name for name, logit in zip(own, logits, strict=True) if best - logit <= TIE * best.abs()]
            yield replace(
                row,
                prediction=tied[0] if len(tied) == 1 else None,
                posterior=logits.softmax(0).tolist(),
                undecided=tied if len(tied) > 1 else [],
                num_evaluations=0,
                cost=0.0,
                seconds=time.perf_counter() - started,
                match_scores=logits.tolist(),
                notes=list(picture.notes) or None,
            )

    def _choices(self, classifier: Baseline, source: Images, run: Sequence[int]) -> tuple[Names, Choices]:
        """Return all candidates of a run as the model takes them, and a function for those of one image."""
        if isinstance(source, CaptionedSource):
            if classifier.class_names is not None:
                raise InputError("this model knows classes and reads no captions, of which these images have their own")
            captions = _all_captions(source, run)
            index = {caption: k for k, caption in enumerate(captions)}
            own = source.captions
            return captions, lambda i: (_caption_row(source, i), own[i], [index[caption] for caption in own[i]])
        names = source.class_names
        task = self.task if isinstance(self.task, Task) else None
        renamed = replace(source, class_names=self.prompts(classifier.class_names, source).names)
        return candidates(classifier.class_names, task, renamed), lambda i: (
            ResultRow(source.ids[i], source.label(i)), names, range(len(names)),
        )  # fmt: skip

    def prompts(self, known: Sequence[str] | None, source: Images) -> Prompts:
        """Return names and templates for a model that knows the classes `known`; any text if None.

        Captions have no names.

        Raises:
            InputError: as `candidates` and `tasks.class_prompts`.
        """
        template = as_templates(self.template)
        if isinstance(source, CaptionedSource):
            return Prompts((), template)
        task = self.task if isinstance(self.task, Task) else None
        return class_prompts(source, task, known=known, template=template, several=True)
