"""Keyword arguments of the methods of `DiffusionClassifier`, and the check that rejects unknown ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from functools import cache, wraps
from pathlib import Path
from typing import ParamSpec, TypedDict, TypeVar, get_args, get_type_hints

from ..denoisers import Average, Conditioning
from ..errors import InputError
from .candidates import Template
from .settings import CaptionOptions, ScoringOptions
from .shortlists import Shortlist


class LoadOptions(TypedDict, total=False):
    """Other keyword arguments of `DiffusionClassifier.from_pretrained`, as in `load_denoiser`. All are optional."""

    image_size: int | None
    without: Collection[str]
    variant: str | None
    loras: Iterable[str | Path]
    words: Iterable[str | Path]
    config: str | Path | None


class ClassifyOptions(ScoringOptions, total=False):
    """Keyword arguments of `DiffusionClassifier.classify` and `stream`. All are optional."""

    template: Template
    """Prompt template such as "a photo of a {}.", or several, for a text-to-image model. Default: the class names are
    prompts themselves."""
    average: Average
    """Quantity averaged over several prompts of a class: "error" (default), which needs a prediction per prompt, or
    "embedding", which needs one per class."""
    prompt_names: Sequence[str] | None
    """Names to use in prompts instead of the class names. Classes with equal prompts tie."""
    conditioning: Conditioning | None
    """Encodings of the classes to use instead of prompts, as `Denoiser.condition` returns them."""
    shortlist: Shortlist | str | None
    """Narrows down the candidates of each image before the search, for example `Screened(clip, keep=20)` or
    "gradient:4"; see `search.shortlists`. Default: none."""


class ScoreOptions(CaptionOptions, total=False):
    """Keyword arguments of `DiffusionClassifier.score` and `stream_scores`. All are optional."""

    pairs: bool
    """Whether each image has its own caption. Default: every image is scored with every caption."""
    unconditional: bool
    """Compare with the model's null condition. Scores can then be compared between images, for the cost of one more
    caption per image. Default: False."""
    draws: int
    """Number of draws per caption. Default: 64."""
    template: Template
    """As in `ClassifyOptions`."""
    average: Average
    """As in `ClassifyOptions`."""


_P = ParamSpec("_P")
_T = TypeVar("_T")


def check_keywords(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a function so that an unknown keyword raises InputError, with a suggestion, before anything is done.

    The known keywords are its parameters and the keys of the TypedDict that its `**options` are annotated with.
    """

    @cache
    def known() -> list[str]:
        parameters = inspect.signature(function).parameters.values()
        names = [
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in ("self", "cls")
        ]
        options = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
        return names + [key for name in options for key in get_args(get_type_hints(function)[name])[0].__annotations__]

    @wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for name in kwargs:
            if name not in known():
                close = get_close_matches(name, known(), 1)
                hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known())}"
                raise InputError(f"{function.__name__} has no option {name!r}: {hint}")
        return function(*args, **kwargs)

    return checked
