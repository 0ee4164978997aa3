"""Shortlist by another classifier, such as CLIP in the appendix of the paper's long version."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ...denoisers.devices import one_line
from ...errors import InputError
from ..jobs import Cost, ImageJob
from .base import SearchContext, check_keep, narrowed


@dataclass(frozen=True)
class Screened:
    """Keep the best classes by another classifier.

    Args:
        by: a callable such as transformers' `ZeroShotImageClassificationPipeline` or a `DiffusionClassifier`:
            `by(image, candidate_labels=[…])` with a PIL image returns a list of `{"score", "label"}`, and it takes
            `hypothesis_template=` if the search has a template. Or a folder or hub id of such a transformers model,
            which is read from safetensors only.
        keep: number of classes to keep.
    """

    wants_pictures: ClassVar[bool] = True
    by: Callable[..., Any] | str
    keep: int = 20
    _loaded: dict[str, Callable[..., Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def narrow(self, context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        """See `Shortlist.narrow`.

        Raises:
            InputError: the model cannot be loaded; its result lacks a candidate.
        """
        check_keep(self.keep, len(context.class_names))
        return self._narrow(self._classifier(context), context, jobs)

    def _narrow(self, by: Callable[..., Any], context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        names = list(context.class_names)
        options = {} if context.templates is None else {"hypothesis_template": context.templates[0]}
        for job in jobs:
            start = time.perf_counter()
            scores = {answer["label"]: answer["score"] for answer in by(job.picture, candidate_labels=names, **options)}
            if missing := [name for name in names if math.isnan(scores.get(name, math.nan))]:
                raise InputError(f"the classifier that makes the shortlist gave no score for {missing[0]!r}")
            values = torch.tensor([-float(scores[name]) for name in names], dtype=torch.float64)
            yield narrowed(job, values, self.keep, Cost(seconds=time.perf_counter() - start))

    def _classifier(self, context: SearchContext) -> Callable[..., Any]:
        if not isinstance(self.by, str):
            return self.by
        if self.by not in self._loaded:
            from transformers import pipeline

            try:
                self._loaded[self.by] = pipeline(
                    "zero-shot-image-classification",
                    model=self.by,
                    device=context.denoiser.device,
                    trust_remote_code=False,
                    model_kwargs={"use_safetensors": True},
                )
            except (OSError, ValueError, KeyError, RuntimeError, ImportError) as e:
                raise InputError(f"{self.by} cannot be loaded to make a shortlist: {one_line(e)}") from e
        return self._loaded[self.by]

    def __str__(self) -> str:
        """model:NAME."""
        return f"model:{self.by if isinstance(self.by, str) else getattr(self.by, '__name__', type(self.by).__name__)}"
