"""A cheaper look first: a smaller model, or the same one at a lower resolution (paper, section 7)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..denoisers.base import Conditioning, Denoiser
from ..denoisers.load import load_denoiser
from ..exceptions import InputError
from ..flops import count_flops
from ..images import preprocess
from ..scoring import Job, Spent
from .base import Setting, by_mean_error, check_keep, narrowed


@dataclass(frozen=True)
class Coarse:
    """The best classes by a few draws of a cheaper denoiser that knows the same classes.

    Args:
        model: a denoiser, or what `load_denoiser` takes; the main one if None.
        size: height and width of the images that it sees, in pixels; its own if None. For U-Nets alone.
        keep: classes.
        num_draws: of every class.

    Raises:
        InputError: neither a model nor a size, no draws.
    """

    model: Denoiser | str | None = None
    size: int | None = None
    keep: int = 20
    num_draws: int = 8

    def __post_init__(self) -> None:
        if self.model is None and self.size is None:
            raise InputError("a coarse look needs another model or another size of the images")
        if self.num_draws < 1:
            raise InputError(f"at least 1 draw is needed; got {self.num_draws}")

    def narrow(self, setting: Setting, jobs: Iterator[Job]) -> Iterator[Job]:
        """See `Shortlist.narrow`."""
        check_keep(self.keep, len(setting.class_names))
        denoiser = setting.denoiser if self.model is None else self._loaded
        denoiser = denoiser if self.size is None else resized(denoiser, self.size)
        conditioning = setting.condition(denoiser, setting.class_names)
        share = _flops(denoiser, conditioning) / _flops(setting.denoiser, setting.conditioning)
        return self._narrow(setting, jobs, denoiser, conditioning, share)

    def _narrow(
        self, setting: Setting, jobs: Iterator[Job], denoiser: Denoiser, conditioning: Conditioning, share: float
    ) -> Iterator[Job]:
        waiting: dict[str, Job] = {}

        def small() -> Iterator[Job]:
            for job in jobs:
                waiting[job.name] = job
                assert job.picture is not None
                image = preprocess(job.picture, denoiser.image_size, crop=denoiser.crop)
                yield replace(job, image=image, spent=Spent())

        for name, means, spent in by_mean_error(setting, denoiser, small(), conditioning, self.num_draws):
            job = waiting.pop(name)
            spent = replace(spent, cost=spent.cost * share)
            yield job if means is None else narrowed(job, means, self.keep, spent)

    @cached_property
    def _loaded(self) -> Denoiser:
        assert self.model is not None
        return load_denoiser(self.model) if isinstance(self.model, str) else self.model

    def __str__(self) -> str:
        """coarse:SIZE or coarse:MODEL."""
        return f"coarse:{self.size or self.model}"


def resized(denoiser: Denoiser, size: int) -> Denoiser:
    """The same network on images of another size.

    Raises:
        InputError: the network takes one size alone, or not this one.
    """
    size = int(size)
    channels, height, *_ = denoiser.latent_shape
    side, rest = divmod(size * height, denoiser.image_size)
    other = copy.copy(denoiser)
    other.image_size, other.latent_shape = size, (channels, side, side)
    try:
        if rest or side < 1 or not denoiser.any_size:
            raise RuntimeError
        count_flops(other, other.condition([0] if denoiser.class_names else ["a"]), torch.zeros(1, dtype=torch.int64))
    except (RuntimeError, ValueError) as e:
        raise InputError(f"this model does not take images of {size} pixels, which the shortlist was to use") from e
    return other


def _flops(denoiser: Denoiser, conditioning: Conditioning) -> int:
    """Operations of one prediction; 1 for a closed form, which has no layers to count."""
    row = torch.zeros(1, dtype=torch.int64)
    return count_flops(denoiser, conditioning[row], row) if denoiser.has_weights else 1
