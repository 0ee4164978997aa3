"""How a model is read as a classifier: what the caller asks for, else what suits the model, else what is usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..denoisers import ModelDefaults
from ..diffusion.draws import Timesteps
from ..diffusion.losses import check_loss
from ..diffusion.timestep_weights import Weights, WeightsSource, read_weights
from ..errors import InputError
from .posterior import Reduction, log_posterior
from .strategies import Sequential, Strategy, parse_strategy


@dataclass(frozen=True)
class ScoringSettings:
    """Settings of one way of reading; arguments as in `DiffusionClassifier.stream`."""

    strategy: Strategy
    timesteps: Timesteps
    loss: str
    weights: Weights | None
    seed: int
    reduction: Reduction
    temperature: float
    prior: tuple[float, ...] | None

    def posterior_settings(self) -> dict[str, Any]:
        """What `log_posterior` wants to know."""
        return {"reduction": self.reduction, "temperature": self.temperature, "prior": self.prior}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, strategy and timesteps as the command line spells them."""
        spelled = {"strategy": str(self.strategy), "timesteps": str(self.timesteps)}
        return spelled | {"loss": self.loss, "weights": self.weights, "seed": self.seed} | self.posterior_settings()


def resolve_settings(
    defaults: ModelDefaults,
    usual: Weights | None,
    class_names: Sequence[str],
    *,
    strategy: Strategy | str | None = None,
    timesteps: Timesteps | str | None = None,
    loss: str | None = None,
    weights: WeightsSource | None = None,
    seed: int = 0,
    reduction: Reduction = "sum",
    temperature: float | None = None,
    prior: Sequence[float] | None = None,
) -> ScoringSettings:
    """Settings with the model's own where none are given; arguments as in `DiffusionClassifier.stream`.

    Args:
        defaults: the model's own.
        usual: weights over time where none were fitted for the loss; uniform if None.
        class_names: the candidates.

    Raises:
        InputError: a setting cannot be used.
    """
    if strategy is None:  # made for all classes of the model
        strategy = parse_strategy(defaults.strategy).among(len(class_names))
    strategy = parse_strategy(strategy) if isinstance(strategy, str) else strategy
    timesteps = timesteps if timesteps is not None else defaults.timesteps
    timesteps = Timesteps.parse(timesteps) if isinstance(timesteps, str) else timesteps
    loss = loss if loss is not None else defaults.loss
    own = usual if defaults.weights is None or loss != defaults.loss else read_weights(defaults.weights)
    found = own if weights is None else _weights(weights, own, loss, defaults)
    as_fitted = (loss, found) == (defaults.loss, own)
    if as_fitted:
        strategy = _calibrated(strategy, timesteps, class_names, defaults)
    if temperature is None and as_fitted and reduction == "sum":
        temperature = defaults.temperature
    temperature = 1.0 if temperature is None else temperature
    probabilities = None if prior is None else tuple(map(float, prior))
    reading = ScoringSettings(strategy, timesteps, loss, found, seed, reduction, temperature, probabilities)
    strategy.init(len(class_names))  # these three for their complaints
    check_loss(loss)
    log_posterior(torch.zeros(len(class_names)), num_dimensions=1, **reading.posterior_settings())
    return reading


def _weights(weights: WeightsSource, own: Weights | None, loss: str, defaults: ModelDefaults) -> Weights | None:
    if not isinstance(weights, str) or weights not in ("fitted", "uniform"):
        return read_weights(weights)
    if weights == "uniform":
        return None
    if defaults.weights is None:
        raise InputError(
            "no weights over time were fitted for this model, or none that gain anything: `calibrate` fits them; "
            "without, they are uniform, or those of training for a model that returns x or learned at uneven times"
        )
    if loss != defaults.loss:
        raise InputError(f"the weights over time of this model were fitted for the loss {defaults.loss}, not {loss}")
    return own


def _calibrated(
    strategy: Strategy, timesteps: Timesteps, class_names: Sequence[str], defaults: ModelDefaults
) -> Strategy:
    """A sequential strategy with the model's calibration, where that was made for the same draws and classes."""
    if not isinstance(strategy, Sequential) or strategy.lags is not None or defaults.lags is None:
        return strategy
    own = parse_strategy(defaults.strategy)
    fits = isinstance(own, Sequential) and own.max_draws == strategy.max_draws
    fits = fits and sorted(defaults.classes or ()) == sorted(class_names)
    if fits and timesteps == Timesteps.parse(defaults.timesteps):
        return replace(strategy, lags=tuple(defaults.lags))
    return strategy
