"""Whatever a network predicts, a perfect prediction is read as the noise itself."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffusion_classifier.diffusion.prediction import PREDICTION_TYPES, split_variance, target, to_noise
from diffusion_classifier.errors import InputError

# Two rows, so that α and σ must be taken row by row.
latents = hnp.arrays(np.float32, (2, 3, 2, 2), elements=st.floats(-5, 5, width=32))
sigmas = hnp.arrays(np.float64, (2,), elements=st.floats(0.01, 1))


def alphas(prediction_type, sigma):
    return 1 - sigma if prediction_type == "flow" else np.sqrt(1 - sigma**2)


def by_hand(prediction_type, x, noise, alpha, sigma):
    alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
    velocity = alpha * noise - sigma * x
    outputs = {"epsilon": noise, "v_prediction": velocity, "sample": x, "flow": noise - x, "edm": -velocity}
    return outputs[prediction_type]


def f32(*arrays):
    return [torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in arrays]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@given(x=latents, noise=latents, sigma=sigmas)
def test_a_perfect_prediction_is_the_noise(prediction_type, x, noise, sigma):
    alpha = alphas(prediction_type, sigma)
    noisy = alpha[:, None, None, None] * x + sigma[:, None, None, None] * noise
    output = by_hand(prediction_type, x, noise, alpha, sigma)
    found = to_noise(*f32(output, noisy, alpha, sigma), prediction_type)
    assert found.dtype == torch.float32
    # Only where x is predicted are rounding errors divided by σ.
    np.testing.assert_allclose(found, noise, rtol=0, atol=1e-5 / (sigma.min() if prediction_type == "sample" else 1))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@given(x=latents, noise=latents, sigma=sigmas)
def test_targets_are_what_is_defined(prediction_type, x, noise, sigma):
    alpha = alphas(prediction_type, sigma)
    found = target(*f32(x, noise, alpha, sigma), prediction_type)
    np.testing.assert_allclose(found, by_hand(prediction_type, x, noise, alpha, sigma), rtol=0, atol=1e-5)


def test_velocity_is_that_of_diffusers():
    scheduler, t = DDPMScheduler(), torch.tensor([10, 900])
    x, noise = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    alpha, sigma = scheduler.alphas_cumprod[t].sqrt(), (1 - scheduler.alphas_cumprod[t]).sqrt()
    torch.testing.assert_close(target(x, noise, alpha, sigma, "v_prediction"), scheduler.get_velocity(x, noise, t))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_output_is_widened_before_the_arithmetic(prediction_type, dtype):
    noisy, output = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    alpha, sigma = torch.tensor([0.6, 0.6]), torch.tensor([0.8, 0.8])
    output = output.to(dtype)
    found = to_noise(output, noisy, alpha, sigma, prediction_type)
    assert torch.equal(found, to_noise(output.float(), noisy, alpha, sigma, prediction_type))
    assert found.dtype == torch.float32


def test_unknown_types_are_refused():
    x = torch.zeros(1, 2)
    for function in (to_noise, target):
        with pytest.raises(InputError, match="'score' is not one of epsilon"):
            function(x, x, torch.ones(1), torch.ones(1), "score")


def test_learned_variance_is_split_off():
    output = torch.arange(16.0).view(2, 4, 2)
    mean, variance = split_variance(output, 4)
    assert torch.equal(mean, output)
    assert variance is None
    mean, variance = split_variance(output, 2)
    assert torch.equal(mean, torch.tensor([[[0.0, 1], [2, 3]], [[8, 9], [10, 11]]]))
    assert torch.equal(variance, mean + 4)
    for channels in (1, 3, 8):
        with pytest.raises(InputError, match="4 channels"):
            split_variance(output, channels)
