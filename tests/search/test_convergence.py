"""Everything together against the oracle: Gaussians, whose expected errors and posterior are known in closed form."""

import pytest
import torch
from gaussians import SCHEDULES, gaussian

from diffusion_classifier.diffusion.draws import Draws, Timesteps
from diffusion_classifier.diffusion.timestep_weights import elbo_weights
from diffusion_classifier.search.engine import score
from diffusion_classifier.search.jobs import ImageJob
from diffusion_classifier.search.posterior import log_posterior, mean_errors, paired_differences
from diffusion_classifier.search.settings import ScoringSettings
from diffusion_classifier.search.strategies import Fixed

D = 3 * 2 * 2
KINDS = [(s, p) for s in SCHEDULES if s != "flow" for p in ("epsilon", "v_prediction", "sample")] + [("flow", "flow")]


def image(seed=0):
    return torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def all_times(schedule):
    """Uniform t: all steps of a table, the middles of as many parts of a flow as make the sum an integral."""
    return torch.arange(1000) if schedule != "flow" else (torch.arange(20_000) + 0.5) / 20


def error_table(denoiser, jobs, num_draws, timesteps="even"):
    """Errors (jobs, K, N) and t (jobs, N)."""
    conditioning = denoiser.condition(denoiser.class_names)
    draws = Draws(Timesteps.parse(timesteps))
    results = list(score(denoiser, jobs, conditioning, ScoringSettings(Fixed(num_draws), draws), batch_size=512))
    return torch.stack([r.errors for r in results]).double(), torch.stack([r.t for r in results])


@pytest.mark.parametrize(("schedule", "prediction_type"), KINDS)
def test_errors_converge_to_their_expectation(schedule, prediction_type):
    denoiser, x = gaussian(3, schedule=schedule, prediction_type=prediction_type), image()
    (errors,), (t,) = error_table(denoiser, [ImageJob("x", x, 1)], 1023)
    expected = denoiser.expected_error(x, t)
    deviation = errors - expected
    assert (deviation.sum(1).abs() < 4 * deviation.square().sum(1).sqrt()).all()
    # Not only on average: at small, middle and large t, where a wrong conversion to ε would show.
    for part in t.argsort().chunk(5):
        deviation = (errors - expected)[:, part]
        assert (deviation.sum(1).abs() < 4 * deviation.square().sum(1).sqrt()).all()
    uniform = denoiser.expected_error(x, all_times(schedule)).mean(1)
    standard_error = (errors - expected).std(1) / 1023**0.5
    assert ((errors.mean(1) - uniform).abs() < 4 * standard_error).all()


@pytest.mark.parametrize(("schedule", "prediction_type"), [kind for kind in KINDS if kind[1] != "epsilon"])
def test_errors_do_not_depend_on_what_the_network_predicts(schedule, prediction_type):
    tables = [
        error_table(gaussian(3, schedule=schedule, prediction_type=p), [ImageJob("x", image(), 1)], 63)[0]
        for p in ("epsilon", prediction_type)
    ]
    torch.testing.assert_close(*tables, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("timesteps", ["even", "random"])
def test_the_error_of_the_mean_falls_as_one_over_the_root_of_draws(timesteps):
    denoiser, x = gaussian(2), image()
    errors, _ = error_table(denoiser, [ImageJob(str(key), x, key) for key in range(32)], 240, timesteps)
    truth = denoiser.expected_error(x, all_times("linear")).mean(1)
    few, many = ((errors[..., :n].mean(2) - truth).square().mean().sqrt() for n in (15, 240))
    assert 2.8 < few / many < 5.7  # 4 = √(240/15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("seed", [0, 1])
def test_elbo_weights_give_the_true_posterior(schedule, seed):
    """By quadrature over t instead of draws, so that the weights alone are tried."""
    denoiser, x, t = gaussian(4, schedule=schedule, seed=seed), image(seed), all_times(schedule)
    weights = elbo_weights(denoiser.schedule, t)
    mean = mean_errors(denoiser.expected_error(x, t), weights)
    actual = log_posterior(mean, num_dimensions=D, temperature=1 / float(weights.mean()))
    truth = denoiser.log_likelihood(x[None])[0].log_softmax(0)
    assert truth.min() < -6  # so that no factor or offset is forgiven
    # Stable Diffusion's table ends where there is some signal left, and that rest of the integral is missing.
    torch.testing.assert_close(actual, truth, rtol=0, atol=0.1 if schedule == "scaled-linear" else 0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_weighted_draws_converge_to_the_true_posterior(schedule):
    denoiser, x = gaussian(3, schedule=schedule, prediction_type="flow" if schedule == "flow" else "epsilon"), image(1)
    (errors,), (t,) = error_table(denoiser, [ImageJob("x", x, 1)], 1023)
    log_likelihood = denoiser.log_likelihood(x[None])[0]
    best = int(log_likelihood.argmax())
    mean, standard_error = paired_differences(elbo_weights(denoiser.schedule, t) * errors * D, best)
    actual, truth = -mean, log_likelihood - log_likelihood[best]
    assert ((actual - truth).abs() <= 4 * standard_error + 0.1).all()
    torch.testing.assert_close(actual.softmax(0), truth.softmax(0), rtol=0, atol=0.05)
