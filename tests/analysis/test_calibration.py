from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest

from diffusion_classifier.analysis.calibration import FOLDS, calibrate, fit_temperature, save_calibration
from diffusion_classifier.denoisers import ModelDefaults
from diffusion_classifier.diffusion.timestep_weights import weights_at
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.error_tables import ErrorTables
from diffusion_classifier.search.strategies import Sequential, parse_strategy
from diffusion_classifier.search.strategies.sequential import largest_lag

D, K, N = 50, 5, 16
NAMES = tuple("abcde")
SETTINGS = {
    "loss": "l1",
    "timesteps": "even:0.1-0.9",
    "num_dimensions": D,
    "num_timesteps": N,
    "strategy": f"fixed:{N}",
}


def made(count=400, temperature=3.0, seed=0):
    """Tables of which the posterior at this temperature is the truth, but for the noise of the draws."""
    rng = np.random.default_rng(seed)
    mean = rng.exponential(0.3, (count, K))
    p = softmax(-D * mean / temperature, axis=1)
    truth = [rng.choice(K, p=row) for row in p]
    errors = torch.from_numpy(1 + mean[..., None] + 0.05 * rng.standard_normal((count, K, N))).float()
    t = torch.arange(N).double()
    return ErrorTables(
        NAMES, SETTINGS, tuple(map(str, range(count))), tuple(NAMES[i] for i in truth), tuple(errors), (t,) * count
    )


@cache
def calibrated():
    """Of `made`: it takes seconds, and several tests ask for it."""
    return calibrate(made(), error_rate=0.05)


def test_what_is_fitted():
    tables = made()
    fitted = calibrate(tables, max_draws=8, error_rate=0.05).defaults
    assert (fitted.strategy, fitted.loss, fitted.timesteps) == ("sequential:8/0.05", "l1", "even:0.1-0.9")
    assert fitted.lags == tuple(sorted(largest_lag(table[:, :8]) for table in tables.errors))
    assert fitted.temperature > 0


def test_temperature_is_that_of_the_truth():
    tables = made(4000, 3.0)
    means = torch.stack(tables.errors).double().mean(2)
    truth = torch.tensor([NAMES.index(name) for name in tables.truth])
    assert fit_temperature(means, truth, D) == pytest.approx(3, rel=0.1)


def test_report_is_of_images_that_the_fit_has_not_seen():
    """Against a plain loop over folds."""
    tables = made(100)
    report = calibrate(tables, error_rate=0.1)
    spent, changed, right = [], [], []
    for i, table in enumerate(tables.errors):
        others = [t for j, t in enumerate(tables.errors) if j % FOLDS != i % FOLDS]
        lags = sorted(map(largest_lag, others))
        threshold = lags[int(np.ceil(0.9 * (len(lags) + 1))) - 1]
        left, n = set(range(K)), 0
        while n < N and len(left) > 1:
            compared, n = left, n + 1
            spent.append(len(left) / 100)
            sums = {c: float(table[c, :n].double().sum()) for c in left}
            left = {c for c in left if sums[c] - min(sums.values()) <= threshold}
        winner = min(compared, key=sums.get)
        changed.append(winner != int(table.mean(1).argmin()))
        right.append(NAMES[winner] == tables.truth[i])
    assert report.num_evaluations == pytest.approx(sum(spent))
    assert report.changed[0] == pytest.approx(np.mean(changed))
    assert report.accuracy[0] == pytest.approx(np.mean(right))
    assert report.full_evaluations == K * N
    full = [
        NAMES[int(table.mean(1).argmin())] == truth for table, truth in zip(tables.errors, tables.truth, strict=True)
    ]
    assert report.full_accuracy[0] == pytest.approx(np.mean(full))


def test_promise_holds_on_other_images_and_scores_are_calibrated():
    fitted = calibrated()
    assert fitted.num_evaluations < 0.6 * fitted.full_evaluations
    assert fitted.calibration_error < 0.1
    again = calibrate(made(seed=1), error_rate=0.05)
    assert binomtest(round(again.changed[0] * 400), 400, 0.05, alternative="greater").pvalue > 0.01


def test_without_true_labels_there_is_no_temperature():
    tables = made(50)
    tables = replace(tables, truth=(None, *tables.truth[1:]))
    report = calibrate(tables, error_rate=0.2)
    assert report.defaults.temperature is None
    assert report.accuracy is report.full_accuracy is report.calibration_error is None
    assert report.defaults.lags is not None


def test_temperature_with_classes_that_are_out():
    """Two classes left at a gap whose answer is right three times of four."""
    means = torch.tensor([[0.1, 0.1 + 1 / D, torch.inf]], dtype=torch.float64).expand(400, -1)
    truth = torch.zeros(400, dtype=torch.int64)
    truth[::4] = 2
    assert fit_temperature(means, truth, D) == pytest.approx(1 / np.log(3), rel=1e-3)


def test_saved_and_read(tmp_path):
    fitted = calibrate(made(50), error_rate=0.1).defaults
    save_calibration(fitted, tmp_path / "c.json")
    found = ModelDefaults.load(tmp_path / "c.json")
    assert replace(found, lags=tuple(found.lags), classes=tuple(found.classes)) == fitted
    assert parse_strategy(found.strategy) == Sequential(N, 0.1)


def misled(count=400, seed=0):
    """As `made`, but the second half of the times leans to classes by chance."""
    tables = made(count, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    for table in tables.errors:
        table[:, N // 2 :] += 0.6 * torch.randn(K, 1, generator=rng)
    return tables


def test_weights_that_gain_are_taken_over():
    report = calibrate(misled(), error_rate=0.05)
    assert report.gain[1] > 0.05
    assert report.defaults.weights == report.fitted_weights
    assert max(report.fitted_weights[6:]) < 0.3 * max(report.fitted_weights[:4])
    assert len(report.fold_weights) == FOLDS
    # What is promised and reported holds for the weighted mean.
    other = calibrate(misled(seed=1), error_rate=0.05)
    assert binomtest(round(other.changed[0] * 400), 400, 0.05, alternative="greater").pvalue > 0.01
    assert report.full_accuracy[0] == pytest.approx(calibrated().full_accuracy[0], abs=0.1)


def test_no_gain_is_claimed_where_there_is_none():
    report = calibrated()
    assert report.gain[1] <= 0
    assert report.defaults.weights is None
    assert report.fitted_weights is not None


def test_a_gain_is_one_over_the_usual_weights():
    """Which here know already what misleads."""
    tables = misled()
    usual = (1.0,) * 8 + (0.0,) * 9
    report = calibrate(replace(tables, settings=SETTINGS | {"default_weights": usual}), error_rate=0.05)
    assert not report.gains
    assert report.defaults.weights == usual
    w = weights_at(usual, torch.arange(N) / N)
    assert report.defaults.lags == pytest.approx(sorted(largest_lag(table * w) for table in tables.errors))
    means = (torch.stack(tables.errors).double() * w).sum(2) / w.sum()
    right = [NAMES[i] == truth for i, truth in zip(means.argmin(1).tolist(), tables.truth, strict=True)]
    assert report.full_accuracy[0] == pytest.approx(np.mean(right))


def test_lags_are_of_weighted_sums():
    tables = misled()
    defaults = calibrate(tables, error_rate=0.05).defaults
    w = weights_at(defaults.weights, torch.arange(N) / N)
    assert defaults.lags == pytest.approx(sorted(largest_lag(table * w) for table in tables.errors))


class TestRefusals:
    def test_more_draws_than_there_are(self):
        with pytest.raises(InputError, match="hold 16 draws; 17 were asked for"):
            calibrate(made(20), max_draws=17, error_rate=0.2)

    def test_too_few_images(self):
        with pytest.raises(InputError, match=r"0\.01 needs a calibration on at least 99 images; this one has 16"):
            calibrate(made(20))

    def test_tables_with_holes(self):
        tables = made(20)
        tables.errors[3][2, 5:] = torch.nan
        with pytest.raises(InputError, match="full tables"):
            calibrate(tables, error_rate=0.2)

    @pytest.mark.parametrize("content", ["", "[]", "{}x", '{"strateg": 1}', None])
    def test_files_that_are_no_calibration(self, tmp_path, content):
        if content is not None:
            (tmp_path / "c.json").write_text(content)
        with pytest.raises(InputError, match=r"c\.json cannot be used as a calibration"):
            ModelDefaults.load(tmp_path / "c.json")

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            save_calibration(ModelDefaults(), tmp_path / "no" / "c.json")
