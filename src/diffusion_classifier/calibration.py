"""Fit how a model is read, on the error tables of some images: no network is needed.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from .denoisers.base import ModelDefaults
from .exceptions import InputError
from .metrics import expected_calibration_error, share_interval
from .posterior import mean_errors
from .strategies import Sequential, Strategy, replay
from .strategies.sequential import largest_lag
from .tables import ErrorTables

FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and what it does to images that it was not fitted on.

    Args:
        defaults: strategy with its lags, loss, timesteps, temperature.
        num_images: M.
        num_evaluations: mean of an image.
        full_evaluations: where every class is evaluated at every draw.
        changed: share of images whose label is not that of the full table, and the ends of its 95 % interval.
        accuracy: of the answers, with interval; None where truths are not known.
        full_accuracy: of the full tables, likewise.
        calibration_error: ECE of the answers' scores; None where truths are not known.
    """

    defaults: ModelDefaults
    num_images: int
    num_evaluations: float
    full_evaluations: int
    changed: tuple[float, float, float]
    accuracy: tuple[float, float, float] | None
    full_accuracy: tuple[float, float, float] | None
    calibration_error: float | None


def calibrate(tables: ErrorTables, *, max_draws: int | None = None, error_rate: float = 0.01) -> Calibration:
    """Fit the lags of `Sequential` and, where truths are known, the temperature of the posterior.

    What is reported is cross-validated: of every fifth of the images with what the other four gave.

    Args:
        tables: full ones, of images like those to be classified, which the model was not trained on.
        max_draws: N; all that the tables hold if None.
        error_rate: of `Sequential`.

    Raises:
        InputError: tables that are not full, fewer draws than asked for, too few images for the error rate.
    """
    errors = tables.complete()
    available = errors.shape[2]
    max_draws = available if max_draws is None else max_draws
    if max_draws > available:
        raise InputError(f"the tables hold {available} draws; {max_draws} were asked for")
    errors = errors[..., :max_draws]
    num_dimensions = tables.settings["num_dimensions"]
    truth = true_classes(tables)

    def temperature(strategy: Sequential, images: Tensor) -> float | None:
        if truth is None:
            return None
        return fit_temperature(search_all(strategy, errors[images])[0], truth[images], num_dimensions)

    label, score = torch.empty(len(errors), dtype=torch.int64), torch.empty(len(errors), dtype=torch.float64)
    spent = torch.empty(len(errors))
    for held_out, strategy in folds(errors, error_rate):
        means, spent[held_out] = search_all(strategy, errors[held_out])
        label[held_out] = means.argmin(1)
        score[held_out] = _scores(means, num_dimensions, temperature(strategy, ~held_out) or 1.0)
    whole = _calibrated(max_draws, error_rate, _largest_lags(errors))
    best = errors.double().mean(2).argmin(1)
    return Calibration(
        defaults=ModelDefaults(
            strategy=str(whole),
            loss=tables.settings["loss"],
            timesteps=tables.settings["timesteps"],
            temperature=temperature(whole, torch.ones(len(errors), dtype=torch.bool)),
            lags=whole.lags,
            classes=tables.class_names,
        ),
        num_images=len(errors),
        num_evaluations=float(spent.mean()),
        full_evaluations=errors[0].numel(),
        changed=share_interval(label != best),
        accuracy=None if truth is None else share_interval(label == truth),
        full_accuracy=None if truth is None else share_interval(best == truth),
        calibration_error=None if truth is None else expected_calibration_error(score, label == truth),
    )


def folds(errors: Tensor, error_rate: float) -> Iterator[tuple[Tensor, Sequential]]:
    """Every fifth of the images, as a mask (M,), with the strategy that the other four calibrate.

    Args:
        errors: full tables (M, K, N).
        error_rate: of the strategy.
    """
    lags = _largest_lags(errors)
    for fold in range(FOLDS):
        held_out = torch.arange(len(errors)) % FOLDS == fold
        yield held_out, _calibrated(errors.shape[2], error_rate, lags[~held_out])


def _largest_lags(errors: Tensor) -> Tensor:
    return torch.tensor([largest_lag(table) for table in errors], dtype=torch.float64)


def _calibrated(max_draws: int, error_rate: float, lags: Tensor) -> Sequential:
    return Sequential(max_draws, error_rate, tuple(lags.sort().values.tolist()))


def save_calibration(defaults: ModelDefaults, file: Path) -> None:
    """Write what `ModelDefaults.load` reads.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        file.write_text(json.dumps(asdict(defaults)) + "\n", "utf-8")
    except OSError as e:
        raise InputError(f"{file} cannot be written: {e}") from e


def fit_temperature(means: Tensor, truth: Tensor, num_dimensions: int) -> float:
    """The temperature at which the score of the answer is the best forecast, in nats, of whether it is right.

    That is a proper score where the true class was eliminated, too, unlike the likelihood of the label.

    Args:
        means: mean errors (M, K), infinite for classes that are out.
        truth: (M,).
        num_dimensions: of a latent.
    """

    def error(log_temperature: float) -> float:
        return forecast_error(means, truth, num_dimensions, 10.0**log_temperature)

    return float(10.0 ** minimize_scalar(error, bounds=(-3, 3), method="bounded").x)


def forecast_error(means: Tensor, truth: Tensor, num_dimensions: int, temperature: float) -> float:
    """Cross-entropy, in nats, of the scores as forecasts of whether the answers are right; see `fit_temperature`."""
    right = (means.argmin(1) == truth).to(means.dtype)
    return float(torch.nn.functional.binary_cross_entropy(_scores(means, num_dimensions, temperature), right))


def _scores(means: Tensor, num_dimensions: int, temperature: float) -> Tensor:
    """Posterior of the best class, (M,), from mean errors (M, K)."""
    gaps = means - means.amin(1, keepdim=True)
    return (-gaps * num_dimensions / temperature).softmax(1).amax(1)


def search_all(strategy: Strategy, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Mean errors (M, K), infinite for classes that are out, and evaluations (M,), from full tables (M, K, N)."""
    states = [replay(strategy, table) for table in errors]
    means = [mean_errors(state.errors).where(state.active, torch.inf) for state in states]
    return torch.stack(means), torch.tensor([float((~state.errors.isnan()).sum()) for state in states])


def true_classes(tables: ErrorTables) -> Tensor | None:
    """True classes (M,); None where some are not known."""
    known = [tables.class_names.index(name) for name in tables.truth if name is not None]
    return torch.tensor(known) if len(known) == len(tables.truth) else None
