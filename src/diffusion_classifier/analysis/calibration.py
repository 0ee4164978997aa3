"""Fit how a model is read, on the error tables of some images: no network is needed.

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

from ..denoisers.base import ModelDefaults
from ..diffusion.timestep_weights import Weights, weights_at
from ..errors import InputError
from ..metrics import Interval, difference_interval, expected_calibration_error, share_interval
from ..runs.error_tables import ErrorTables
from ..search.posterior import is_correct, mean_errors
from ..search.strategies import Sequential, Strategy, replay
from ..search.strategies.sequential import largest_lag
from .fit_weights import FOLDS, by_knots, fit_weights, folds

NUM_KNOTS = 9
"""Of fitted weights over time: eight equal parts of the schedule."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and what it does to images that it was not fitted on.

    Args:
        defaults: strategy with its lags, loss, timesteps, temperature, and weights over time where they gain.
        num_images: M.
        num_evaluations: mean of an image.
        full_evaluations: where every class is evaluated at every draw.
        changed: share of images whose label is not that of the full table, and the ends of its 95 % interval.
        accuracy: of the answers, with interval; None where truths are not known, and so those below.
        full_accuracy: of the full tables, likewise.
        calibration_error: ECE of the answers' scores.
        gain: in accuracy of the full tables by fitted weights over the usual ones, with the ends of its 95 % interval.
        fitted_weights: on all images, whether they gain or not.
        fold_weights: on the images of each fold's complement.
        answers: score of the answer and whether it is right, of each image.
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
    answers: tuple[tuple[float, bool], ...] = ()

    @property
    def gains(self) -> bool:
        """Whether fitted weights were shown to gain, and so are taken over."""
        return self.gain is not None and self.gain[1] > 0


def calibrate(tables: ErrorTables, *, max_draws: int | None = None, error_rate: float = 0.01) -> Calibration:
    """Fit the lags of `Sequential` and, where truths are known, weights over time and the temperature of the posterior.

    What is reported is cross-validated: of every fifth of the images with what the other four gave. Weights are taken
    over only if the interval of what they gain lies above 0. With them, lags are of the images that they were fitted
    on, so that the promise of `Sequential` is no longer exact, if close to it: the weights are but nine numbers.

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
    errors, u = errors[..., :max_draws], tables.fractions()[:, :max_draws]
    num_images, num_dimensions = len(errors), tables.settings["num_dimensions"]
    truth = true_classes(tables)
    everyone = torch.ones(num_images, dtype=torch.bool)
    _calibrated(max_draws, error_rate, torch.zeros(num_images * (FOLDS - 1) // FOLDS))  # complains of too few
    about: dict[str, Any] = {}
    taken = tables.settings.get("default_weights")
    usual = None if taken is None else weights_at(taken, u)
    weights = [usual] * (FOLDS + 1)  # what each fold's complement gave, and in the end all images
    if truth is not None:
        parts = [*(~held_out for held_out in folds(num_images)), everyone]
        *fold_weights, fitted = [fit_weights_to(errors, u, truth, part, num_dimensions) for part in parts]
        at_draws = [weights_at(w, u) for w in (*fold_weights, fitted)]
        right = torch.empty(num_images, dtype=torch.bool)
        for held_out, w in zip(folds(num_images), at_draws, strict=False):
            right[held_out] = is_correct(_means(errors, w), truth)[held_out]
        gain = difference_interval(right, is_correct(_means(errors, usual), truth))
        about = {"gain": gain, "fitted_weights": fitted, "fold_weights": tuple(fold_weights)}
        if gain[1] > 0:
            weights, taken = [*at_draws], fitted
    label, score = torch.empty(num_images, dtype=torch.int64), torch.empty(num_images, dtype=torch.float64)
    spent, best = torch.empty(num_images), torch.empty_like(label)
    hits, full_hits = torch.zeros(num_images, dtype=torch.bool), torch.zeros(num_images, dtype=torch.bool)

    def temperature(means: Tensor, of: Tensor) -> float | None:
        return None if truth is None else fit_temperature(means, truth[of], num_dimensions)

    for held_out, own in zip(folds(num_images), weights, strict=False):
        strategy = _calibrated(max_draws, error_rate, _largest_lags(errors, own)[~held_out])
        means, evaluations = search_all(strategy, errors, own)
        tau = temperature(means[~held_out], ~held_out) or 1.0
        label[held_out], spent[held_out] = means.argmin(1)[held_out], evaluations[held_out]
        score[held_out] = _scores(means[held_out], num_dimensions, tau)
        full = _means(errors, own)
        best[held_out] = full.argmin(1)[held_out]
        if truth is not None:
            hits[held_out] = is_correct(means, truth)[held_out]
            full_hits[held_out] = is_correct(full, truth)[held_out]
    whole = _calibrated(max_draws, error_rate, _largest_lags(errors, weights[-1]))
    if truth is not None:
        about |= {
            "accuracy": share_interval(hits),
            "full_accuracy": share_interval(full_hits),
            "calibration_error": expected_calibration_error(score, hits),
            "answers": tuple(zip(score.tolist(), hits.tolist(), strict=True)),
        }
    return Calibration(
        defaults=ModelDefaults(
            strategy=str(whole),
            loss=tables.settings["loss"],
            timesteps=tables.settings["timesteps"],
            temperature=temperature(search_all(whole, errors, weights[-1])[0], everyone),
            lags=whole.lags,
            classes=tables.class_names,
            weights=taken,
        ),
        num_images=num_images,
        num_evaluations=float(spent.mean()),
        full_evaluations=errors[0].numel(),
        changed=share_interval(label != best),
        **about,
    )


def fit_weights_to(errors: Tensor, u: Tensor, truth: Tensor, part: Tensor, num_dimensions: int) -> Weights:
    """Weights over time that suit these images; see `weights.fit_weights`.

    Args:
        errors: full tables (M, K, N).
        u: times of the draws as fractions of the schedule (M, N).
        truth: (M,).
        part: the images to take, (M,), bool.
        num_dimensions: of a latent.
    """
    temperature = fit_temperature(errors[part].double().mean(2), truth[part], num_dimensions)
    knots = by_knots(errors[part], u[part], min(NUM_KNOTS, errors.shape[2] + 1))
    return fit_weights(knots, truth[part], num_dimensions / temperature)


def calibrated_folds(
    errors: Tensor, error_rate: float, weights: Tensor | None = None
) -> Iterator[tuple[Tensor, Sequential]]:
    """`folds`, each with the strategy that the other four fifths calibrate.

    Args:
        errors: full tables (M, K, N).
        error_rate: of the strategy.
        weights: of each image's draws, (M, N); uniform if None.
    """
    lags = _largest_lags(errors, weights)
    for held_out in folds(len(errors)):
        yield held_out, _calibrated(errors.shape[2], error_rate, lags[~held_out])


def _means(errors: Tensor, weights: Tensor | None) -> Tensor:
    """Means over the draws (M, K)."""
    return errors.double().mean(2) if weights is None else (errors * weights[:, None]).mean(2)


def _largest_lags(errors: Tensor, weights: Tensor | None = None) -> Tensor:
    tables = errors if weights is None else errors * weights[:, None]
    return torch.tensor([largest_lag(table) for table in tables], dtype=torch.float64)


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
    right = is_correct(means, truth).to(means.dtype)
    return float(torch.nn.functional.binary_cross_entropy(_scores(means, num_dimensions, temperature), right))


def _scores(means: Tensor, num_dimensions: int, temperature: float) -> Tensor:
    """Posterior of the best class, (M,), from mean errors (M, K)."""
    gaps = means - means.amin(1, keepdim=True)
    return (-gaps * num_dimensions / temperature).softmax(1).amax(1)


def search_all(strategy: Strategy, errors: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean errors (M, K), infinite for classes that are out, and evaluations (M,).

    Args:
        strategy: replayed on every image.
        errors: full tables (M, K, N).
        weights: of each image's draws, (M, N); uniform if None.
    """
    each: Iterable[Tensor | None] = [None] * len(errors) if weights is None else weights
    states = [replay(strategy, table, w) for table, w in zip(errors, each, strict=True)]
    means = [mean_errors(state.errors, state.weights).where(state.active, torch.inf) for state in states]
    return torch.stack(means), torch.tensor([float((~state.errors.isnan()).sum()) for state in states])


def true_classes(tables: ErrorTables) -> Tensor | None:
    """True classes (M,); None where some are not known."""
    known = [tables.class_names.index(name) for name in tables.truth if name is not None]
    return torch.tensor(known) if len(known) == len(tables.truth) else None
