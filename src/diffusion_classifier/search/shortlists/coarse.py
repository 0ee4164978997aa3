"""Shortlist by a cheaper denoiser: a smaller model, or the same one at a lower resolution (paper, section 7)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from ...data.images import preprocess
from ...denoisers.base import Conditioning, Denoiser
from ...denoisers.flops import count_flops, shared_share
from ...denoisers.load import load_denoiser
from ...errors import InputError
from ..jobs import Cost, ImageJob
from ..scorer import Scorer
from .base import SearchContext, by_mean_error, check_keep, narrowed


@dataclass(frozen=True)
class Coarse:
    """Keep the best classes by a few draws of a cheaper denoiser that knows the same classes.

    Args:
        model: a denoiser, or an argument of `load_denoiser`. Default: the main model.
        size: height and width of its images in pixels, for U-Nets only. Default: the model's own.
        keep: number of classes to keep.
        num_draws: draws per class.

    Raises:
        InputError: neither a model nor a size.
    """

    wants_pictures: ClassVar[bool] = True
    model: Denoiser | str | None = None
    size: int | None = None
    keep: int = 20
    num_draws: int = 8
    _loaded: dict[Any, Denoiser] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.model is None and self.size is None:
            raise InputError("a coarse shortlist needs another model or another image size")

    def narrow(self, context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        """See `Shortlist.narrow`."""
        check_keep(self.keep, len(context.class_names))
        context.check_draws(self.num_draws)
        shared_share(context.denoiser, context.conditioning)  # at the full size: it is counted only once
        denoiser, conditioning = context.denoiser, context.conditioning
        if self.model is not None:
            denoiser = self._denoiser(denoiser.device, denoiser.dtype)
            conditioning = context.condition(denoiser, context.class_names)
        denoiser = denoiser if self.size is None else resized(denoiser, self.size, conditioning)
        share = _flops(denoiser, conditioning) / _flops(context.denoiser, context.conditioning)
        return self._narrow(context, jobs, context.scorer.with_denoiser(denoiser), conditioning, share)

    def _narrow(
        self,
        context: SearchContext,
        jobs: Iterator[ImageJob],
        scorer: Scorer,
        conditioning: Conditioning,
        share: float,
    ) -> Iterator[ImageJob]:
        waiting: dict[str, ImageJob] = {}

        def small() -> Iterator[ImageJob]:
            for job in jobs:
                waiting[job.name] = replace(job, picture=None)
                assert job.picture is not None
                image = preprocess(job.picture, scorer.denoiser.image_size, crop=scorer.denoiser.crop)
                yield replace(job, image=image, cost=Cost(), picture=None)

        for name, means, cost in by_mean_error(context, scorer, small(), conditioning, self.num_draws):
            cost = replace(cost, full_evaluations=cost.full_evaluations * share)
            yield narrowed(waiting.pop(name), means, self.keep, cost)

    def _denoiser(self, device: torch.device, dtype: torch.dtype) -> Denoiser:
        if not isinstance(self.model, str):
            assert self.model is not None
            return self.model
        if (device, dtype) not in self._loaded:
            self._loaded[device, dtype] = load_denoiser(self.model, device=device, dtype=dtype)
        return self._loaded[device, dtype]

    def __str__(self) -> str:
        """coarse:SIZE or coarse:MODEL."""
        return f"coarse:{self.size or self.model}"


def resized(denoiser: Denoiser, size: int, conditioning: Conditioning) -> Denoiser:
    """Return the same network for images of another size.

    Args:
        denoiser: the network.
        size: height and width in pixels.
        conditioning: any encodings, for a trial call.

    Raises:
        InputError: the network takes one size only, or not this one.
    """
    channels, height, *_ = denoiser.latent_shape
    side, rest = divmod(size * height, denoiser.image_size)
    other = copy.copy(denoiser)
    other.image_size, other.latent_shape = size, (channels, side, side)
    try:
        if rest or side < 1 or not denoiser.any_size:
            raise RuntimeError
        _flops(other, conditioning)
    except (RuntimeError, ValueError) as e:
        raise InputError(f"this model does not take images of {size} pixels, the size of the shortlist") from e
    return other


def _flops(denoiser: Denoiser, conditioning: Conditioning) -> int:
    """Return the operations of one prediction; 1 for a closed form, which has no layers to count."""
    row = torch.zeros(1, dtype=torch.int64)
    return count_flops(denoiser, conditioning.first_prompts()[row], row) if denoiser.has_weights else 1
