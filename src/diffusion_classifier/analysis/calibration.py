"""Calibrate a model on the error tables of some images, without the network.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ..denoisers import ModelDefaults
from ..diffusion.timestep_weights import Weights, weights_at
from ..errors import InputError
from ..metrics import Interval, difference_interval, expected_calibration_error, share_interval
from ..runs.error_tables import ErrorTables
from ..search.posterior import is_correct, mean_errors
from ..search.strategies import Sequential, Strategy, replay
from ..search.strategies.sequential import largest_lag
from .fit_weights import FOLDS, by_knots, fit_weights, folds

NUM_KNOTS = 9
"""Number of knots of fitted timestep weights, which divide the schedule into eight equal parts."""


@dataclass(frozen=True)
class Calibration:
    """Fitted settings, and their cross-validated effect on images that they were not fitted on.

    Args:
        defaults: strategy with its lags, loss, timesteps, temperature, and timestep weights if they improve accuracy.
        num_images: M.
        num_evaluations: mean number of evaluations per image.
        full_evaluations: number of evaluations per image for every class at every draw.
        changed: share of images whose prediction is not that of the full table.
        accuracy: accuracy of the predictions; None if true classes are unknown, and so are the fields below.
        full_accuracy: accuracy of the full tables.
        calibration_error: ECE of the probability of the prediction.
        gain: gain in accuracy of the full tables by fitted weights over the default ones.
        fitted_weights: timestep weights fitted on all images, whether used or not.
        fold_weights: timestep weights fitted on the complement of each fold.
        predictions: (probability, whether correct) of the prediction for each image.
    """

    defaults: ModelDefaults
    num_images: int
    num_evaluations: float
    full_evaluations: int
    changed: Interval
    accuracy: Interval | None = None
    full_accuracy: Interval | None = None
    calibration_error: float | None = None
    gain: Interval | None = None
    fitted_weights: Weights | None = None
    fold_weights: tuple[Weights, ...] = ()
    predictions: tuple[tuple[float, bool], ...] = ()

    @property
    def gains(self) -> bool:
        """Return whether fitted weights improve accuracy significantly; only then are they used."""
        return self.gain is not None and self.gain.low > 0


def calibrate(tables: ErrorTables, *, max_draws: int | None = None, error_rate: float = 0.01) -> Calibration:
    """Fit the lags of `Sequential` and, if true classes are known, timestep weights and the temperature.

    Reported numbers are cross-validated: for each fifth of the images, with what the other four gave. Weights are used
    only if the interval of their gain lies above 0. Their lags are then those of the images that the weights were
    fitted on, so that the guarantee of `Sequential` holds only approximately; the weights are but nine numbers.

    Args:
        tables: full tables of images like those to be classified, which the model was not trained on.
        max_draws: N; all draws of the tables if None.
        error_rate: error rate of `Sequential`.

    Raises:
        InputError: the tables are not full, have fewer draws than `max_draws`, or too few images for the error rate.
    """
    errors = tables.complete()
    available = errors.shape[2]
    max_draws = available if max_draws is None else max_draws
    if max_draws > available:
        raise InputError(f"the tables hold {available} draws; {max_draws} were asked for")
    errors, u = errors[..., :max_draws], tables.fractions()[:, :max_draws]
    num_images, num_dimensions = len(errors), tables.settings["num_dimensions"]
    truth = true_classes(tables)
    _calibrated(max_draws, error_rate, torch.zeros(num_images * (FOLDS - 1) // FOLDS))  # raises for too few images
    about: dict[str, Any] = {}
    used = tables.settings.get("default_weights")
    default = None if used is None else weights_at(used, u)
    weights = [default] * (FOLDS + 1)  # for each held-out fold, and for all images
    if truth is not None:
        gain, fitted = _fit_and_compare(errors, u, truth, default, num_dimensions)
        about = {"gain": gain, "fitted_weights": fitted[-1], "fold_weights": tuple(fitted[:-1])}
        if gain.low > 0:
            weights, used = [weights_at(w, u) for w in fitted], fitted[-1]
    held = _hold_out(errors, weights[:-1], truth, error_rate, num_dimensions)
    final = _calibrated(max_draws, error_rate, _largest_lags(errors, weights[-1]))
    temperature = None
    if truth is not None:
        temperature = fit_temperature(search_all(final, errors, weights[-1])[0], truth, num_dimensions)
        about |= {
            "accuracy": share_interval(held.hits),
            "full_accuracy": share_interval(held.full_hits),
            "calibration_error": expected_calibration_error(held.score, held.hits),
            "predictions": tuple(zip(held.score.tolist(), held.hits.tolist(), strict=True)),
        }
    return Calibration(
        defaults=ModelDefaults(
            strategy=str(final),
            loss=tables.settings["loss"],
            timesteps=tables.settings["timesteps"],
            temperature=temperature,
            lags=final.lags,
            classes=tables.class_names,
            weights=used,
        ),
        num_images=num_images,
        num_evaluations=float(held.spent.mean()),
        full_evaluations=errors[0].numel(),
        changed=share_interval(held.prediction != held.full_prediction),
        **about,
    )


def _fit_and_compare(
    errors: Tensor, u: Tensor, truth: Tensor, default: Tensor | None, num_dimensions: int
) -> tuple[Interval, list[Weights]]:
    """Fit timestep weights on the complement of each fold, and on all images.

    Returns:
        The cross-validated gain in accuracy of the full tables over the default weights, and the fitted weights.
    """
    parts = [*(~held_out for held_out in folds(len(errors))), torch.ones(len(errors), dtype=torch.bool)]
    fitted = [fit_weights_to(errors, u, truth, part, num_dimensions) for part in parts]
    correct = torch.empty(len(errors), dtype=torch.bool)
    for held_out, w in zip(folds(len(errors)), fitted, strict=False):
        correct[held_out] = is_correct(_means(errors, weights_at(w, u)), truth)[held_out]
    return difference_interval(correct, is_correct(_means(errors, default), truth)), fitted


@dataclass(frozen=True)
class _HeldOut:
    """Results for each image, (M,), with what the folds that it is not in gave.

    Args:
        prediction: predicted class.
        full_prediction: prediction of the full table.
        score: probability of the prediction.
        spent: number of evaluations.
        hits: whether the prediction is correct; False if the true class is unknown.
        full_hits: whether the prediction of the full table is correct.
    """

    prediction: Tensor
    full_prediction: Tensor
    score: Tensor
    spent: Tensor
    hits: Tensor
    full_hits: Tensor


def _hold_out(
    errors: Tensor, weights: Iterable[Tensor | None], truth: Tensor | None, error_rate: float, num_dimensions: int
) -> _HeldOut:
    """Calibrate on the complement of each fold, with its weights (M, N), and evaluate on the fold."""
    num_images, _, max_draws = errors.shape
    prediction, full_prediction = torch.zeros(2, num_images, dtype=torch.int64)
    hits, full_hits = torch.zeros(2, num_images, dtype=torch.bool)
    score, spent = torch.zeros(num_images, dtype=torch.float64), torch.zeros(num_images)
    for held_out, own in zip(folds(num_images), weights, strict=True):
        strategy = _calibrated(max_draws, error_rate, _largest_lags(errors, own)[~held_out])
        means, evaluations = search_all(strategy, errors, own)
        full = _means(errors, own)
        tau = 1.0
        if truth is not None:
            tau = fit_temperature(means[~held_out], truth[~held_out], num_dimensions)
            hits[held_out] = is_correct(means, truth)[held_out]
            full_hits[held_out] = is_correct(full, truth)[held_out]
        prediction[held_out], full_prediction[held_out] = means.argmin(1)[held_out], full.argmin(1)[held_out]
        score[held_out], spent[held_out] = _scores(means[held_out], num_dimensions, tau), evaluations[held_out]
    return _HeldOut(prediction, full_prediction, score, spent, hits, full_hits)


def fit_weights_to(errors: Tensor, u: Tensor, truth: Tensor, part: Tensor, num_dimensions: int) -> Weights:
    """Fit timestep weights to some of the images; see `fit_weights.fit_weights`.

    Args:
        errors: full tables, (M, K, N).
        u: timesteps of the draws as fractions of the schedule, (M, N).
        truth: true classes, (M,).
        part: images to fit on, (M,), bool.
        num_dimensions: number of dimensions of a latent.
    """
    temperature = fit_temperature(errors[part].double().mean(2), truth[part], num_dimensions)
    knots = by_knots(errors[part], u[part], min(NUM_KNOTS, errors.shape[2] + 1))
    return fit_weights(knots, truth[part], num_dimensions / temperature)


def calibrated_folds(
    errors: Tensor, error_rate: float, weights: Tensor | None = None
) -> Iterator[tuple[Tensor, Sequential]]:
    """Yield each fold of `folds` with the strategy calibrated on the other four fifths.

    Args:
        errors: full tables, (M, K, N).
        error_rate: error rate of the strategy.
        weights: weights of the draws of each image, (M, N); uniform if None.
    """
    lags = _largest_lags(errors, weights)
    for held_out in folds(len(errors)):
        yield held_out, _calibrated(errors.shape[2], error_rate, lags[~held_out])


def _means(errors: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean errors over draws, (M, K)."""
    return errors.double().mean(2) if weights is None else (errors * weights[:, None]).mean(2)


def _largest_lags(errors: Tensor, weights: Tensor | None = None) -> Tensor:
    tables = errors if weights is None else errors * weights[:, None]
    return torch.tensor([largest_lag(table) for table in tables], dtype=torch.float64)


def _calibrated(max_draws: int, error_rate: float, lags: Tensor) -> Sequential:
    return Sequential(max_draws, error_rate, tuple(lags.sort().values.tolist()))


def save_calibration(defaults: ModelDefaults, file: Path) -> None:
    """Write a calibration for `ModelDefaults.load`.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        file.write_text(json.dumps(asdict(defaults)) + "\n", "utf-8")
    except OSError as e:
        raise InputError(f"{file} cannot be written: {e}") from e


def fit_temperature(means: Tensor, truth: Tensor, num_dimensions: int) -> float:
    """Return the temperature at which the probability of the prediction best forecasts whether it is correct, in nats.

    Unlike the likelihood of the true class, this is a proper score even if that class was eliminated.

    Args:
        means: mean errors, (M, K); infinite for eliminated classes.
        truth: true classes, (M,).
        num_dimensions: number of dimensions of a latent.
    """

    def error(log_temperature: float) -> float:
        return forecast_error(means, truth, num_dimensions, 10.0**log_temperature)

    return float(10.0 ** minimize_scalar(error, bounds=(-3, 3), method="bounded").x)


def forecast_error(means: Tensor, truth: Tensor, num_dimensions: int, temperature: float) -> float:
    """Return the cross-entropy, in nats, that `fit_temperature` minimises, at a given temperature."""
    correct = is_correct(means, truth).to(means.dtype)
    return float(torch.nn.functional.binary_cross_entropy(_scores(means, num_dimensions, temperature), correct))


def _scores(means: Tensor, num_dimensions: int, temperature: float) -> Tensor:
    """Return the posterior probability of the best class, (M,), from mean errors (M, K)."""
    gaps = means - means.amin(1, keepdim=True)
    return (-gaps * num_dimensions / temperature).softmax(1).amax(1)


def search_all(strategy: Strategy, errors: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Replay a strategy on every image.

    Args:
        strategy: the strategy.
        errors: full tables, (M, K, N).
        weights: weights of the draws of each image, (M, N); uniform if None.

    Returns:
        Mean errors (M, K), infinite for eliminated classes, and numbers of evaluations (M,).
    """
    each: Iterable[Tensor | None] = [None] * len(errors) if weights is None else weights
    states = [replay(strategy, table, w) for table, w in zip(errors, each, strict=True)]
    means = [mean_errors(state.errors, state.weights).where(state.active, torch.inf) for state in states]
    return torch.stack(means), torch.tensor([float((~state.errors.isnan()).sum()) for state in states])


def true_classes(tables: ErrorTables) -> Tensor | None:
    """Return the true classes, (M,); None if any is unknown."""
    known = [tables.class_names.index(name) for name in tables.truth if name is not None]
    return torch.tensor(known) if len(known) == len(tables.truth) else None
