import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.special import softmax

from diffusion_classifier.analysis.fit_weights import _coefficients, _nats, by_knots, fit_weights
from diffusion_classifier.diffusion.timestep_weights import read_weights, weights_at

NUMBERS = st.lists(st.floats(0, 100), min_size=2, max_size=12).filter(lambda w: max(w) > 1e-3)


@given(NUMBERS, st.integers(0, 2**32 - 1))
def test_knots_give_the_weighted_mean(numbers, seed):
    rng = np.random.default_rng(seed)
    u, errors = torch.from_numpy(rng.random((2, 5))), torch.from_numpy(rng.random((2, 3, 5)))
    weights = read_weights(numbers)
    expected = (errors * weights_at(weights, u)[:, None]).mean(2)
    torch.testing.assert_close(by_knots(errors, u, len(weights)) @ torch.tensor(weights, dtype=torch.float64), expected)


def test_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(0)
    logits, labels, w = rng.standard_normal((20, 4, 3)), rng.integers(0, 4, 20), rng.random(3)
    np.testing.assert_allclose(
        _nats(w, logits, labels)[1], approx_fprime(w, lambda v: _nats(v, logits, labels)[0], 1e-7), atol=1e-5
    )


def made(seed, misleading=6.0, count=600, num_classes=5, num_draws=32):
    """Errors that tell the class early in the schedule, and late nothing but a leaning of the image's own."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, count)
    u = np.tile((np.arange(num_draws) + 0.5) / num_draws, (count, 1))
    signal = (np.arange(num_classes) != truth[:, None]) * 1.0
    leaning = misleading * rng.standard_normal((count, num_classes))
    errors = signal[..., None] * (u < 0.5)[:, None] + leaning[..., None] * (u >= 0.5)[:, None]
    errors = errors + rng.standard_normal(errors.shape)
    return torch.from_numpy(errors), torch.from_numpy(u), torch.from_numpy(truth)


def accuracy(errors, u, truth, weights):
    return float(((errors * weights_at(weights, u)[:, None]).mean(2).argmin(1) == truth).double().mean())


def test_late_times_that_mislead_are_left_out():
    errors, u, truth = made(0)
    weights = fit_weights(by_knots(errors, u, 9), truth, 5.0)
    assert max(weights[5:]) < 0.05 * min(weights[:4])
    other = made(1)
    assert accuracy(*other, (1.0, 1.0)) < 0.6
    assert accuracy(*other, weights) > 0.95


def test_times_that_tell_alike_are_weighted_alike():
    """Labels drawn from the very posterior that uniform weights give."""
    rng = np.random.default_rng(0)
    knots = rng.exponential(1, (2000, 4, 5))
    p = softmax(-knots.sum(2), axis=1)
    truth = torch.tensor([rng.choice(4, p=row) for row in p])
    weights = fit_weights(torch.from_numpy(knots), truth, 1.0)
    np.testing.assert_allclose(weights, 1, atol=0.2)


def test_few_images_fit_nothing():
    assert fit_weights(torch.rand(9, 3, 4).double(), torch.zeros(9).long(), 1.0) == (1, 1, 1, 1)


def test_a_fit_that_finds_nothing_is_uniform():
    """All coefficients would be 0: of times that say the opposite."""
    logits = np.zeros((10, 2, 3))
    logits[:, 1] = 1.0
    np.testing.assert_array_equal(_coefficients(logits, np.zeros(10, int), 1e-3), 1)
