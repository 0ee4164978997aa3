import numpy as np
import pytest
import torch
from scipy.stats import norm

from diffusion_classifier.metrics import expected_calibration_error, share_interval


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
