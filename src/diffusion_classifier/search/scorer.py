"""A denoiser made ready to score images: its batch size, its encoded candidates, its fixed or free batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

from ..data.images import Picture, preprocess
from ..denoisers import Conditioning, Denoiser
from ..denoisers.default_weights import default_weights
from ..denoisers.tuning import set_layout, tune
from ..errors import InputError
from .candidates import Candidates
from .engine import score
from .jobs import ImageJob, ScoredImage
from .settings import ScoringSettings, check_settings


class Scorer:
    """A denoiser with everything that scoring images by it needs.

    Args:
        denoiser: the model.
        batch_size: rows of one network call. With "auto" it is measured at the first use; see `tuning`. It is halved
            when memory runs out.
        compile_network: call torch.compile; see `Denoiser.compile`.

    Attributes:
        candidates: encodes classes and captions, and keeps the latest encodings.
        full_batches: give every network call the same number of rows; see `fixed_batches`.

    Raises:
        InputError: a batch size below 1.
    """

    full_batches = False

    def __init__(self, denoiser: Denoiser, *, batch_size: int | str = "auto", compile_network: bool = False) -> None:
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"the batch size must be a whole number from 1, or auto; got {batch_size}")
        self.denoiser = denoiser
        self.batch_size = batch_size
        self.candidates = Candidates(denoiser)
        self._compile = compile_network

    @property
    def num_dimensions(self) -> int:
        """Number of dimensions of a latent."""
        return prod(self.denoiser.latent_shape)

    @property
    def has_null_condition(self) -> bool:
        """Whether the model can predict without a class."""
        try:
            self.candidates.null()
        except InputError:
            return False
        return True

    def score(
        self,
        jobs: Iterable[ImageJob],
        conditioning: Conditioning,
        settings: ScoringSettings,
        class_names: Sequence[str] | None = None,
    ) -> Iterator[ScoredImage]:
        """Score images and yield each as it is done; see `engine.score`.

        Raises:
            InputError: the settings do not suit the model.
        """
        check_settings(settings, self.denoiser)  # before the network is tuned, which takes a while
        return score(
            self.denoiser,
            jobs,
            conditioning,
            settings,
            batch_size=self.prepare(conditioning),
            class_names=class_names,
            full_batches=self.full_batches,
        )

    def table_settings(self, settings: ScoringSettings) -> dict[str, Any]:
        """Return what `error_tables.table_writer` stores with the errors of these settings."""
        return {
            "num_dimensions": self.num_dimensions,
            "num_timesteps": self.denoiser.schedule.num_timesteps,
            "default_weights": default_weights(self.denoiser, settings.loss),
            **settings.as_dict(),
        }

    def prepare(self, conditioning: Conditioning) -> int:
        """Tune and compile the network, as far as the settings say, and return the batch size."""
        if isinstance(self.batch_size, str):
            with self.denoiser.fixed_rows(self.full_batches):
                self.batch_size = tune(self.denoiser, conditioning.first_prompts())
        if self._compile and not self.denoiser.compiled:  # after tuning, which would compile each size that it tries
            self.denoiser.compile()
        return self.batch_size

    def with_denoiser(self, denoiser: Denoiser) -> Scorer:
        """Return a scorer of another model, with the batch size and the kind of batches of this one."""
        other = Scorer(denoiser, batch_size=self.batch_size)
        other.full_batches = self.full_batches
        return other

    @contextmanager
    def fixed_batches(self, batch_size: int | None = None, channels_last: bool | None = None) -> Iterator[Scorer]:
        """Yield a copy whose errors do not depend, bit for bit, on the other rows of their batch.

        Every network call of the copy has the same number of rows, and rows share no work, which takes longer. This
        scorer and its model are afterwards as they were before. The copy must not be used afterwards.

        Args:
            batch_size: rows of one network call, if this scorer's is "auto".
            channels_last: memory layout of the network within the context. Default: unchanged.
        """
        fixed, layout = copy.copy(self), self.denoiser.channels_last
        fixed.full_batches = True
        if batch_size is not None and fixed.batch_size == "auto":
            fixed.batch_size = batch_size
        try:
            set_layout(self.denoiser, layout if channels_last is None else channels_last)
            yield fixed
        finally:
            set_layout(self.denoiser, layout)

    def job(self, name: str, picture: Picture) -> ImageJob:
        """Return the job of a decoded image."""
        image = preprocess(picture.image, self.denoiser.image_size, crop=self.denoiser.crop)
        return ImageJob(name, image, picture.key)
