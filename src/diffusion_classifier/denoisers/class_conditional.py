"""Class-conditional models, which have a closed list of classes."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from ..data.prompts import distinct_names
from ..errors import InputError
from .base import Conditioning, Denoiser
from .class_inputs import ClassInputs, Entry, of_entries


class ClassConditional(Denoiser):
    """A denoiser whose network takes the index of a class.

    Attributes:
        class_names: one name per class, which may list synonyms as in "tench, Tinca tinca".
        null_class: index of the row that was trained without a class. None if there is no such row.
    """

    conditions = ("class_labels",)
    class_names: tuple[str, ...]
    null_class: int | None = None
    guidance: ClassVar[float] = 1.0
    """Default guidance scale of the family's pipeline. 1 is no guidance."""

    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """Return class indices. See `Denoiser.condition`."""
        return Conditioning({"class_labels": torch.tensor(class_ids(classes, self.class_names), device=self.device)})

    def null_condition(self) -> Conditioning:
        """Return the null class. See `Denoiser.null_condition`."""
        if self.null_class is None:
            return super().null_condition()
        return Conditioning({"class_labels": torch.tensor([self.null_class], device=self.device)})

    @abstractmethod
    def entries(self) -> Iterable[Entry]:
        """Return all places where the classes enter the network.

        Raises:
            InputError: they do not enter as a table of embeddings.
        """

    @contextmanager
    def class_inputs(self, t: Tensor, conditioning: Conditioning) -> Iterator[ClassInputs]:
        """See `Denoiser.class_inputs`."""
        with of_entries(self.entries(), t, conditioning.tensors["class_labels"]) as inputs:
            yield inputs


def class_ids(classes: Sequence[str] | Sequence[int], class_names: Sequence[str]) -> list[int]:
    """Return the indices of classes that are given by index, by name or by a synonym.

    Case does not matter, unless classes differ in case only. A name may list synonyms, separated by commas, as names of
    ImageNet do. If several classes share a name, each is named with its index, as `distinct_names` writes it.

    Raises:
        InputError: an unknown index or name, with the most similar names; a name that several classes share; or one
            class twice.
    """
    whole: dict[str, set[int]] = {}
    index: dict[str, set[int]] = {}
    for i, name in enumerate(class_names):
        whole.setdefault(name.strip().lower(), set()).add(i)
        for synonym in name.lower().split(","):
            index.setdefault(synonym.strip(), set()).add(i)
    index |= whole
    index |= {name.lower(): {i} for i, name in enumerate(distinct_names(class_names)) if name != class_names[i]}
    count = Counter(class_names)
    exact = {name: {i} for i, name in enumerate(class_names) if count[name] == 1}
    ids: list[int] = []
    for c in classes:
        word = str(c).strip()
        known = {int(c)} if isinstance(c, Integral) else exact.get(word) or index.get(word.lower(), set())
        if not known:
            near = get_close_matches(str(c).lower(), index, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(class_names[min(index[n])] for n in near)}?"
                if near
                else f"it knows {', '.join(class_names[:20])}{' …' if len(class_names) > 20 else ''}"
            )
            raise InputError(f"this model was not trained on the class {c!r}; {hint}")
        if len(known) > 1:
            names = " or ".join(distinct_names(class_names)[i] for i in sorted(known))
            raise InputError(f"the class {c!r} may be {names}; write one of these in full")
        (i,) = known
        if not 0 <= i < len(class_names):
            raise InputError(f"class index {i} is not between 0 and {len(class_names) - 1}")
        if i in ids:
            first = classes[ids.index(i)]
            raise InputError(f"{first!r} and {c!r} are one class of this model, {class_names[i]}: give one of them")
        ids.append(i)
    return ids
