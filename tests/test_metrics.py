import numpy as np
import pytest
import torch
from scipy.stats import norm

from diffusion_classifier.metrics import difference_interval, expected_calibration_error, mean_interval, share_interval


def test_interval_of_a_share_is_wilsons():
    share, low, high = share_interval(torch.arange(50) < 8)
    z, n, p = norm.ppf(0.975), 50, 0.16
    centre, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    assert (share, low, high) == pytest.approx((p, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)))


def test_calibration_error_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.random(500), [0.0, 1.0, 1 / 15, 0.2]])
    right = rng.random(504) < scores**2
    total = 0.0
    for b in range(15):
        inside = (scores > b / 15) & (scores <= (b + 1) / 15) if b else scores <= 1 / 15
        if inside.any():
            total += abs(scores[inside].mean() - right[inside].mean()) * inside.mean()
    found = expected_calibration_error(torch.from_numpy(scores), torch.from_numpy(right))
    assert found == pytest.approx(total, abs=0.005)  # what lies on an edge may fall to either side
    assert found > 0.1


def test_perfect_forecasts_have_no_calibration_error():
    right = torch.tensor([True, False, True])
    assert expected_calibration_error(right.double(), right) == 0


def test_interval_of_a_difference_covers_it():
    """On simulated pairs of classifiers: right both, one, the other, none."""
    rng = np.random.default_rng(0)
    cells = rng.choice(4, size=(2000, 150), p=[0.7, 0.12, 0.06, 0.12])
    covered = 0
    for row in cells:
        a, b = torch.from_numpy((row == 0) | (row == 1)), torch.from_numpy((row == 0) | (row == 2))
        difference, low, high = difference_interval(a, b)
        assert difference == pytest.approx(a.double().mean() - b.double().mean())
        covered += low <= 0.06 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


def test_few_that_differ_show_no_gain():
    same = torch.zeros(100, dtype=torch.bool)
    assert difference_interval(same, same)[1] < 0
    assert difference_interval(torch.arange(100) < 3, same)[1] < 0 < difference_interval(torch.arange(100) < 9, same)[1]


def test_interval_of_a_mean():
    values = torch.tensor([1.0, 2.0, 4.0, 7.0])
    expected = norm.interval(0.95, 3.5, np.std(values.numpy(), ddof=1) / 2)
    assert mean_interval(values) == pytest.approx((3.5, *expected))
    assert mean_interval(values[:1])[1] == -np.inf
