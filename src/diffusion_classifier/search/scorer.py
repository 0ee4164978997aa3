"""A denoiser made ready to be asked about images: batch size, candidates, settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import prod
from typing import Any

from ..data.images import Picture, preprocess
from ..denoisers import Average, Conditioning, Denoiser
from ..denoisers.default_weights import default_weights, training_weights
from ..denoisers.tuning import tune
from ..diffusion.draws import Draws
from ..diffusion.timestep_weights import Weights
from ..errors import InputError
from .candidates import Candidates, Classes, Template
from .engine import check_weights, score
from .jobs import ImageJob, ScoredImage
from .settings import ScoringSettings, resolve_settings
from .strategies import Strategy


class Scorer:
    """Reads a denoiser as a classifier; what is asked of it is for those who inherit.

    Args:
        denoiser: the model.
        batch_size: rows of one network call; measured at the first use if "auto", see `batching`. Halved when memory
            runs out.
        compile_network: torch.compile; see `Denoiser.compile`.

    Attributes:
        full_batches: whether every network call has as many rows as it always has, see `Denoiser.fix_rows`, so that no
            bit of an error depends on what else is in its batch.

    Raises:
        InputError: a batch size below 1.
    """

    full_batches = False

    def __init__(self, denoiser: Denoiser, *, batch_size: int | str = "auto", compile_network: bool = False) -> None:
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"the batch size must be a whole number from 1, or auto; got {batch_size}")
        self.denoiser = denoiser
        self.batch_size = batch_size
        self._compile = compile_network
        self._candidates = Candidates(denoiser)

    @property
    def num_dimensions(self) -> int:
        """Of a latent."""
        return prod(self.denoiser.latent_shape)

    @property
    def has_null_condition(self) -> bool:
        """Whether the model can predict without a class."""
        try:
            self._candidates.null()
        except InputError:
            return False
        return True

    def reading(self, class_names: Sequence[str], **options: Any) -> ScoringSettings:
        """The settings that `stream` will use for these candidates, if given these options."""
        loss = options.get("loss") or self.denoiser.defaults.loss
        if isinstance(options.get("weights"), str) and options["weights"] == "training":
            options["weights"] = training_weights(self.denoiser, loss)
        return resolve_settings(self.denoiser.defaults, default_weights(self.denoiser, loss), class_names, **options)

    def table_settings(self, reading: ScoringSettings) -> dict[str, Any]:
        """What `tables.table_writer` keeps beside errors that are read with these settings."""
        return {
            "num_dimensions": self.num_dimensions,
            "num_timesteps": self.denoiser.schedule.num_timesteps,
            "default_weights": default_weights(self.denoiser, reading.loss),
            **reading.as_dict(),
        }

    def _score(
        self,
        jobs: Iterable[ImageJob],
        conditioning: Conditioning,
        strategy: Strategy,
        draws: Draws,
        loss: str,
        class_names: Sequence[str],
        weights: Weights | None = None,
        also: Sequence[str] = (),
    ) -> Iterator[ScoredImage]:
        batch_size = self._ready(conditioning, strategy, draws, loss, weights)
        return score(
            self.denoiser,
            jobs,
            conditioning,
            strategy,
            draws=draws,
            loss=loss,
            weights=weights,
            batch_size=batch_size,
            class_names=class_names,
            full_batches=self.full_batches,
            also=also,
        )

    def _ready(
        self, conditioning: Conditioning, strategy: Strategy, draws: Draws, loss: str, weights: Weights | None
    ) -> int:
        """`prepare`; complains of loss, times and weights before the network is tuned, which takes a while."""
        schedule = self.denoiser.schedule
        self.denoiser.check_loss(loss)
        draws.times(schedule, range(max(1, len(draws.timesteps.values))), 0)
        check_weights(weights, draws, schedule, strategy.init(len(conditioning)).errors.shape[1])
        return self.prepare(conditioning)

    def prepare(self, conditioning: Conditioning) -> int:
        """Tune and compile the network, where that was asked for; returns the batch size."""
        if self.full_batches:
            self.denoiser.fix_rows()
        if isinstance(self.batch_size, str):
            self.batch_size = tune(self.denoiser, conditioning.first_prompts())
        if self._compile and not self.denoiser.compiled:  # not before: each size that is tried would be compiled
            self.denoiser.compile()
        return self.batch_size

    def _job(self, name: str, picture: Picture) -> ImageJob:
        return ImageJob(name, preprocess(picture.image, self.denoiser.image_size, crop=self.denoiser.crop), picture.key)

    def condition(
        self,
        classnames: Classes | None,
        template: Template,
        average: Average = "error",
        prompt_names: Sequence[str] | None = None,
    ) -> tuple[tuple[str, ...], Conditioning]:
        """The candidates' names (K) and their conditioning; see `Candidates.named`."""
        return self._candidates.named(classnames, template, average, prompt_names=prompt_names)

    def encode(self, captions: Sequence[str], template: Template, average: Average = "error") -> Conditioning:
        """The conditioning of captions; see `Candidates.encode`."""
        return self._candidates.encode(captions, template, average)
