"""What may be asked of images besides their class: which of its own captions is true; and of baselines.

Shape legend: C captions of an image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..baselines.hub import Baseline
from ..classifier import DiffusionClassifier
from ..data.captioned import CaptionedSource
from ..data.images import ImageError, load_image
from ..denoisers import Average
from ..errors import InputError
from ..search.candidates import Template, as_templates
from ..search.caption_scores import caption_scores
from ..search.posterior import scale_of
from ..search.settings import ScoringSettings
from ..search.strategies import TIE
from ..tasks import CaptionTask, Prompts, Task, class_prompts
from .evaluation import (
    Images,
    about_reading,
    about_run,
    answer_of,
    candidates,
    choose,
    errors_of,
    kept_errors,
    prediction_of,
)
from .spec import WITHOUT_DRAWS, RunSpec
from .store import Row

WITH_NULL = "fixed:64"
"""The strategy where none is given and the null condition is evaluated, too: it has to see all draws."""


def choose_captioned(
    source: CaptionedSource, *, limit: int | None = None, subset: Sequence[str] | None = None
) -> list[int]:
    """As `evaluate.choose`; pairs stay together.

    Raises:
        InputError: as there; a limit that is odd, or a subset that holds one image of a pair alone, where there are
            pairs.
    """
    if not source.paired or (limit is None and subset is None):
        return choose(source, limit=limit, subset=subset)
    if limit is not None:
        choose(source, limit=limit, subset=subset)  # for its complaints
        if limit % 2:
            raise InputError(f"the images of {source.name} come in pairs: the limit must be even; got {limit}")
        num_pairs, wanted = len(source) // 2, limit // 2
        return [2 * (i * num_pairs // wanted) + k for i in range(wanted) for k in (0, 1)]
    positions = choose(source, subset=subset)
    if alone := sorted(set(positions) - {i ^ 1 for i in positions}):
        raise InputError(
            f"the images of {source.name} come in pairs, and the subset has {source.ids[alone[0]]} without "
            f"{source.ids[alone[0] ^ 1]}"
        )
    return positions


def _all_captions(source: CaptionedSource, run: Sequence[int]) -> list[str]:
    """Different ones, in an order that does not depend on which images are done."""
    return list(dict.fromkeys(caption for i in run for caption in source.captions[i]))


def _about_captions(source: CaptionedSource) -> dict[str, Any]:
    """What specs say of a run whose images have captions of their own."""
    kind, metric = ("pairs", "text_score") if source.paired else ("captions", "accuracy")
    return {"kind": kind, "metric": metric, "class_names": ()}


def _row(source: CaptionedSource, i: int) -> Row:
    captions = source.captions[i]
    return {
        "id": source.ids[i],
        "label": captions[source.truth[i]],
        "candidates": list(captions),
        "tag": source.tags[i] if source.tags else None,
    }


@dataclass(frozen=True)
class CaptionEvaluator:
    """Which of its own captions is true of each image? See `evaluate.Evaluator`.

    Args:
        task: which the images are of.
        unconditional: evaluate the null condition, too, which image scores need; of pairs, where the model has one and
            the settings allow, if None.
        template: around each caption, if any; as in `DiffusionClassifier.choices`, and so the others.
        average: see there.
        store_errors: keep error tables, for `rescore`; the last row of each is the null condition's.
        also: other losses, whose error tables are kept too.
        options: strategy, timesteps, loss, weights, seed, reduction, temperature; see there.
    """

    task: CaptionTask | None = None
    unconditional: bool | None = None
    template: Template = None
    average: Average = "error"
    store_errors: bool = False
    also: tuple[str, ...] = ()
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
        """See `evaluate.Evaluator`."""
        captions = _all_captions(source, positions)
        _refuse_unknown(classifier, source, captions)
        reading, unconditional = self._settled(classifier, source, positions)
        conditioning = classifier.scorer.candidates.encode(captions, self.template, self.average)
        return RunSpec(
            **kept_errors(self.store_errors, self.also),
            **about_run(source, positions, model, command),
            **about_reading(classifier, reading, conditioning),
            **_about_captions(source),
            unconditional=unconditional,
            templates=as_templates(self.template),
            average=self.average,
            shortlist=None,
            task=None if self.task is None else self.task.name,
        )

    def answers(
        self, classifier: DiffusionClassifier, source: CaptionedSource, positions: Sequence[int], run: Sequence[int]
    ) -> Iterator[Row]:
        """See `evaluate.Evaluator`."""
        reading, unconditional = self._settled(classifier, source, run)
        scale = scale_of(classifier.scorer.num_dimensions, reading.reduction, reading.temperature)
        results = classifier.choices(
            (source.read(i) for i in positions),
            [source.captions[i] for i in positions],
            among=_all_captions(source, run),
            unconditional=unconditional,
            template=self.template,
            average=self.average,
            extra_losses=self.also,
            **{**self.options, "strategy": reading.strategy},
        )
        for place, result, scored in results:
            row = _row(source, positions[place])
            if result.failure is not None:
                yield row | {"status": "failed", "reason": result.failure}
                continue
            row |= answer_of(result) | prediction_of(result) | {"fits": None}
            if unconditional:
                row["fits"] = [score.score for score in caption_scores(scored, result.class_names, True, scale)]
            yield row | errors_of(scored) if self.store_errors else row

    def _settled(
        self, classifier: DiffusionClassifier, source: CaptionedSource, run: Sequence[int]
    ) -> tuple[ScoringSettings, bool]:
        """How the model is read, and whether its null condition is evaluated."""
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


def _refuse_unknown(classifier: DiffusionClassifier, source: CaptionedSource, captions: Sequence[str]) -> None:
    """Complain of a model that reads no text, unless its classes are called as the captions."""
    known = classifier.denoiser.class_names
    if known is not None and not {caption.lower() for caption in captions} <= {name.lower() for name in known}:
        raise InputError(
            f"{source.name} has captions, which this model does not read: it knows {len(known)} classes; take one that "
            "reads text"
        )


@dataclass(frozen=True)
class BaselineEvaluator:
    """The same of a model that answers in one pass, and the question for a class, too. See `evaluate.Evaluator`.

    Args:
        task: which the images are of.
        template: around each caption or class, where the model reads texts; of classes those beside the data or the
            task's if None. Of several, the embeddings are averaged, as CLIP's authors do.
    """

    task: Task | CaptionTask | None = None
    template: Template = None

    def prepare_spec(
        self, classifier: Baseline, source: Images, positions: Sequence[int], *, model: str = "", command: str = ""
    ) -> RunSpec:
        """See `evaluate.Evaluator`."""
        classes = {} if isinstance(source, CaptionedSource) else {"class_names": source.class_names}
        metric = self.task.metric if isinstance(self.task, Task) else "accuracy"
        self._names(classifier, source, positions)  # for its complaints
        prompts = self.prompts(classifier.class_names, source)
        names = None if isinstance(source, CaptionedSource) or prompts.names == source.class_names else prompts.names
        return RunSpec(
            **about_run(source, positions, model, command, prompts.notes),
            **_about_captions(source) if isinstance(source, CaptionedSource) else classes | {"metric": metric},
            weights_of_model=classifier.fingerprint(),
            strategy=classifier.strategy,
            templates=prompts.templates,
            prompt_names=names,
            image_size=classifier.image_size,
            dtype=str(classifier.dtype).removeprefix("torch."),
            device=str(classifier.device),
            batch_size=1,
            task=None if self.task is None else self.task.name,
            **WITHOUT_DRAWS,
        )

    def answers(
        self, classifier: Baseline, source: Images, positions: Sequence[int], run: Sequence[int]
    ) -> Iterator[Row]:
        """See `evaluate.Evaluator`."""
        names = self._names(classifier, source, run)
        index = {name: k for k, name in enumerate(names)}
        scorer = classifier.scorer(names, self.prompts(classifier.class_names, source).templates or ())
        for i in positions:
            if isinstance(source, CaptionedSource):
                row, own = _row(source, i), source.captions[i]
                among: Sequence[int] = [index[name] for name in own]
            else:
                row, own = {"id": source.ids[i], "label": source.label(i)}, source.class_names
                among = range(len(own))
            started = time.perf_counter()
            try:
                logits = scorer(load_image(source.read(i), source.ids[i]).image, among).double().cpu()
            except ImageError as e:
                yield row | {"status": "failed", "reason": str(e).removeprefix(f"{source.ids[i]}: ")}
                continue
            best = logits.max()
            tied = [name for name, logit in zip(own, logits, strict=True) if best - logit <= TIE * best.abs()]
            yield row | {
                "prediction": tied[0] if len(tied) == 1 else None,
                "posterior": logits.softmax(0).tolist(),
                "undecided": tied if len(tied) > 1 else [],
                "num_evaluations": 0,
                "cost": 0.0,
                "seconds": time.perf_counter() - started,
                "status": "done",
                "fits": logits.tolist(),
            }

    def _names(self, classifier: Baseline, source: Images, run: Sequence[int]) -> Sequence[str] | Sequence[int]:
        if not isinstance(source, CaptionedSource):
            asked = replace(source, class_names=self.prompts(classifier.class_names, source).names)
            return candidates(classifier.class_names, self.task if isinstance(self.task, Task) else None, asked)
        if classifier.class_names is not None:
            raise InputError("this model knows classes and reads no captions, of which these images have their own")
        return _all_captions(source, run)

    def prompts(self, known: Sequence[str] | None, source: Images) -> Prompts:
        """Names and templates, for a model that knows these classes; any text if None. Captions have no names.

        Raises:
            InputError: as `evaluate.candidates` and `tasks.class_prompts`.
        """
        template = as_templates(self.template)
        if isinstance(source, CaptionedSource):
            return Prompts((), template)
        task = self.task if isinstance(self.task, Task) else None
        return class_prompts(source, task, known=known, template=template, several=True)
