"""The candidates of a classification: names of classes, and their encodings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, TypeAlias

import torch

from ..data.prompts import distinct_names, parse_labels
from ..denoisers import Average, Conditioning, Denoiser
from ..denoisers.devices import to_device
from ..errors import InputError

Classes: TypeAlias = str | Sequence[str] | Sequence[int]
"""Class names, as a list or separated by commas, or class indices."""
Template: TypeAlias = str | Sequence[str] | None
"""One or several prompt templates; None if names are prompts themselves, or for a class-conditional model."""


def as_templates(template: Template) -> tuple[str, ...] | None:
    """Return the template or templates as a tuple."""
    if template is None:
        return None
    return (template,) if isinstance(template, str) else tuple(template)


class Candidates:
    """Encodes classes by a denoiser, and keeps the latest encodings: most programs use the same classes again."""

    def __init__(self, denoiser: Denoiser) -> None:
        self._denoiser = denoiser
        self._last: tuple[Any, Conditioning] | None = None
        self._null: tuple[Any, Conditioning] | None = None

    def named(
        self,
        classnames: Classes | None,
        template: Template,
        average: Average = "error",
        conditioning: Conditioning | None = None,
        prompt_names: Sequence[str] | None = None,
    ) -> tuple[tuple[str, ...], Conditioning]:
        """Return the names (K) and their conditioning; arguments as in `DiffusionClassifier.stream`.

        Raises:
            InputError: fewer than two classes, a duplicate or unknown class, no classes for a text-to-image model, a
                template for a class-conditional model, or encodings that do not fit.
        """
        known = self._denoiser.class_names
        if conditioning is not None:
            return self._given(classnames, template, conditioning)
        if prompt_names is not None:
            return self._worded(classnames, template, average, prompt_names)
        if classnames is None:
            if known is None:
                raise InputError("a text-to-image model needs candidates: give it the labels to choose from")
            classnames = range(len(known))
        if known is not None and not isinstance(classnames, str) and all(isinstance(c, Integral) for c in classnames):
            ids = [int(c) for c in classnames]
            conditioning = self.encode(ids, template, average)
            return tuple(parse_labels(distinct_names(known, ids))), conditioning
        names = parse_labels(classnames)  # type: ignore[arg-type]
        return tuple(names), self.encode(names, template, average)

    def _worded(
        self, classes: Classes | None, template: Template, average: Average, prompt_names: Sequence[str]
    ) -> tuple[tuple[str, ...], Conditioning]:
        """Return classes whose names only label the results; prompts are made of `prompt_names`, which may repeat."""
        names = tuple(map(str, classes or ()))
        if len(set(names)) < len(names) or len(names) != len(prompt_names):
            raise InputError(
                f"{len(prompt_names)} names for prompts were given for {len(names)} classes, which need different names"
            )
        return names, self.encode(list(prompt_names), template, average)

    def encode(
        self, classes: Sequence[str] | Sequence[int], template: Template = None, average: Average = "error"
    ) -> Conditioning:
        """Return the encodings of K classes; one class is enough.

        Raises:
            InputError: as in `named`.
        """
        templates = as_templates(template)
        key = tuple(classes), templates, average, self._denoiser.device
        if self._last is None or self._last[0] != key:
            self._last = key, self._encode(classes, templates, average)
        return self._last[1]

    def null(self) -> Conditioning:
        """Return the model's null condition, one row.

        Raises:
            InputError: the model has none.
        """
        device = self._denoiser.device
        if self._null is None or self._null[0] != device:
            self._null = device, self._denoiser.null_condition()
        return self._null[1]

    def with_null(self, conditioning: Conditioning) -> Conditioning:
        """Return the conditioning with the model's null condition as one more class.

        Raises:
            InputError: the model has none.
        """
        null = self.null()
        rows = torch.zeros(conditioning.num_prompts, dtype=torch.int64)
        return conditioning.joined(replace(null[rows], num_prompts=conditioning.num_prompts))

    def _encode(
        self, classes: Sequence[str] | Sequence[int], templates: tuple[str, ...] | None, average: Average
    ) -> Conditioning:
        if templates is None:
            return self._denoiser.condition(classes)
        if self._denoiser.class_names is not None:
            raise InputError("this model is class-conditional, not text-to-image: it has no use for a template")
        if not all(isinstance(c, str) for c in classes):
            raise InputError("a text-to-image model needs class names, not class indices")
        return self._denoiser.condition_by_templates(classes, templates, average)  # type: ignore[arg-type]

    def _given(
        self, classes: Classes | None, template: Template, conditioning: Conditioning
    ) -> tuple[tuple[str, ...], Conditioning]:
        if classes is None or template is not None:
            raise InputError("encodings of classes need the names of the classes, and no template")
        names = parse_labels(classes)  # type: ignore[arg-type]
        if len(names) != len(conditioning):
            raise InputError(f"{len(names)} names were given for the encodings of {len(conditioning)} classes")
        if set(conditioning.tensors) != set(self._denoiser.conditions):
            given, wanted = (", ".join(sorted(of)) for of in (conditioning.tensors, self._denoiser.conditions))
            raise InputError(f"the encodings hold {given}; this model needs {wanted}")
        device = self._denoiser.device
        tensors = {name: to_device(tensor, device) for name, tensor in conditioning.tensors.items()}
        return tuple(names), replace(conditioning, tensors=tensors)
