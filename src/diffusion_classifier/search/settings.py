"""Settings of a classification: what the caller gives, then the model's own defaults, then general ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import torch

from ..denoisers import Denoiser, ModelDefaults
from ..denoisers.default_weights import default_weights, training_weights
from ..diffusion.draws import Draws, Timesteps
from ..diffusion.timestep_weights import Weights, WeightsSource, read_weights, weights_at
from ..errors import InputError
from .posterior import Reduction, log_posterior
from .strategies import Sequential, Strategy, parse_strategy


class CaptionOptions(TypedDict, total=False):
    """Keyword arguments that decide how captions are scored. All are optional; None means the default."""

    timesteps: Timesteps | str | None
    """Where the draws lie, for example "even", "middle:0.5" or "250,500". Default: the model's own."""
    loss: str | None
    """One of "l2", "l1" and "huber", or of "vlb" and "l2+vlb" for a network that predicts the variance. Default: the
    model's own."""
    weights: WeightsSource | None
    """Timestep weights: a function of t/T such as `lambda u: torch.exp(-7 * u)`, numbers at evenly spaced times, a JSON
    file of them, "fitted" for those of a calibration, "training" for those that the network was trained with
    (`default_weights.training_weights`), or "uniform". Default: those fitted for the model, where they were shown to be
    better; otherwise `default_weights`. See `timestep_weights.read_weights`."""
    seed: int
    """Seed of the noise. Default: 0."""
    reduction: Reduction
    """Whether errors enter the posterior as sums ("sum", the default) or means ("mean") over dimensions."""
    temperature: float | None
    """Temperature of the posterior. Default: the model's own, which was fitted for its own loss, its own weights and
    sums over dimensions; 1 for other settings."""


class ScoringOptions(CaptionOptions, total=False):
    """Keyword arguments that decide how images are classified. All are optional; None means the default."""

    strategy: Strategy | str | None
    """For example `Fixed(64)` or "staged:25,250/5,1". Default: the model's own, without those of its stages that would
    keep all classes."""
    extra_losses: Sequence[str]
    """Other losses whose errors are kept for the same predictions (`Classification.extra_losses`). Default: none."""
    prior: Sequence[float] | None
    """One positive number per class. Default: uniform."""


@dataclass(frozen=True)
class ScoringSettings:
    """Everything that decides the errors of an image and the posterior made of them. See `ScoringOptions`."""

    strategy: Strategy
    draws: Draws = field(default_factory=Draws)
    loss: str = "l2"
    weights: Weights | None = None
    extra_losses: tuple[str, ...] = ()
    reduction: Reduction = "sum"
    temperature: float = 1.0
    prior: tuple[float, ...] | None = None

    @property
    def losses(self) -> tuple[str, ...]:
        """Losses of the errors to keep. The first is the one that classes are compared by."""
        return (self.loss, *self.extra_losses)

    def posterior_settings(self) -> dict[str, Any]:
        """Return the keyword arguments of `log_posterior`."""
        return {"reduction": self.reduction, "temperature": self.temperature, "prior": self.prior}

    def as_dict(self) -> dict[str, Any]:
        """Return all settings but the extra losses as plain values, spelled as on the command line."""
        spelled = {"strategy": str(self.strategy), "timesteps": str(self.draws.timesteps), "loss": self.loss}
        return spelled | {"weights": self.weights, "seed": self.draws.seed} | self.posterior_settings()


def resolve_settings(
    denoiser: Denoiser,
    class_names: Sequence[str],
    *,
    strategy: Strategy | str | None = None,
    timesteps: Timesteps | str | None = None,
    loss: str | None = None,
    weights: WeightsSource | None = None,
    extra_losses: Sequence[str] = (),
    seed: int = 0,
    reduction: Reduction = "sum",
    temperature: float | None = None,
    prior: Sequence[float] | None = None,
) -> ScoringSettings:
    """Return finished settings: the model's defaults replace the options that are not given.

    Args:
        denoiser: the model.
        class_names: the candidates.
        strategy: see `ScoringOptions` for this and the other options.

    Raises:
        InputError: a setting cannot be used.
    """
    defaults = denoiser.defaults
    if strategy is None:  # the model's own was chosen for all of its classes
        strategy = parse_strategy(defaults.strategy).among(len(class_names))
    strategy = parse_strategy(strategy) if isinstance(strategy, str) else strategy
    timesteps = defaults.timesteps if timesteps is None else timesteps
    timesteps = Timesteps.parse(timesteps) if isinstance(timesteps, str) else timesteps
    loss = defaults.loss if loss is None else loss
    denoiser.check_loss(loss)
    own = read_weights(defaults.weights) if defaults.weights is not None and loss == defaults.loss else None
    own = default_weights(denoiser, loss) if own is None else own
    found = own if weights is None else _read_weights(weights, own, loss, denoiser)
    as_fitted = (loss, found) == (defaults.loss, own)
    if as_fitted:
        strategy = _calibrated(strategy, timesteps, class_names, defaults)
    if temperature is None:
        temperature = defaults.temperature if as_fitted and reduction == "sum" else None
    settings = ScoringSettings(
        strategy=strategy,
        draws=Draws(timesteps, seed),
        loss=loss,
        weights=found,
        extra_losses=tuple(extra_losses),
        reduction=reduction,
        temperature=1.0 if temperature is None else temperature,
        prior=None if prior is None else tuple(map(float, prior)),
    )
    # Validate now; each raises InputError.
    strategy.init(len(class_names))
    log_posterior(torch.zeros(len(class_names)), num_dimensions=1, **settings.posterior_settings())
    check_settings(settings, denoiser)
    return settings


def check_settings(settings: ScoringSettings, denoiser: Denoiser) -> None:
    """Raise if the model cannot compute these losses at these times.

    Raises:
        InputError: a loss that is unknown or not for this network, a time outside the schedule, or no draw that counts.
    """
    for loss in settings.losses:
        denoiser.check_loss(loss)
    settings.draws.times(denoiser.schedule, range(max(1, len(settings.draws.timesteps.values))), 0)
    check_weights(settings, denoiser, settings.strategy.num_draws)


def check_weights(settings: ScoringSettings, denoiser: Denoiser, num_draws: int) -> None:
    """Raise if each of the first `num_draws` draws has weight 0.

    Raises:
        InputError: each of them has.
    """
    if settings.weights is None:
        return
    u = settings.draws.times(denoiser.schedule, range(num_draws), 0) / denoiser.schedule.num_timesteps
    if not weights_at(settings.weights, u).any():
        raise InputError(
            f"the first {num_draws} draws lie at times whose weight is 0: choose other timesteps or weights"
        )


def _read_weights(weights: WeightsSource, own: Weights | None, loss: str, denoiser: Denoiser) -> Weights | None:
    if not isinstance(weights, str) or weights not in ("fitted", "training", "uniform"):
        return read_weights(weights)
    if weights == "training":
        return training_weights(denoiser, loss)
    if weights == "uniform":
        return None
    if denoiser.defaults.weights is None:
        raise InputError(
            "no timestep weights were fitted for this model, or they did not improve it: `calibrate` fits them; the "
            "default is uniform, or the training weights for a model that predicts x or was trained at uneven times"
        )
    if loss != denoiser.defaults.loss:
        raise InputError(
            f"the timestep weights of this model were fitted for the loss {denoiser.defaults.loss}, not {loss}"
        )
    return own


def _calibrated(
    strategy: Strategy, timesteps: Timesteps, class_names: Sequence[str], defaults: ModelDefaults
) -> Strategy:
    """Return a sequential strategy with the model's calibration, if that was made for the same draws and classes."""
    if not isinstance(strategy, Sequential) or strategy.lags is not None or defaults.lags is None:
        return strategy
    own = parse_strategy(defaults.strategy)
    fits = isinstance(own, Sequential) and own.num_draws == strategy.num_draws
    fits = fits and sorted(defaults.classes or ()) == sorted(class_names)
    if fits and timesteps == Timesteps.parse(defaults.timesteps):
        return replace(strategy, lags=tuple(defaults.lags))
    return strategy
