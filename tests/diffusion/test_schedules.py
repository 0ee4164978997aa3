"""Schedules, compared with the tables and the noising of diffusers' own schedulers."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from diffusion_classifier.diffusion.schedules import (
    _VP_SCHEDULERS,
    EDM,
    DiscreteVP,
    RectifiedFlow,
    add_noise,
    read_scheduler,
)
from diffusion_classifier.errors import InputError

# numpy 2 and the schedulers' own code.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

BETAS = [
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 300},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.array([0.1, 0.2, 0.3, 0.4]), "num_train_timesteps": 4},
]


def read(scheduler):
    """As if the scheduler had been loaded from a file, which names its class."""
    return read_scheduler({**scheduler.config, "_class_name": type(scheduler).__name__})


@pytest.mark.parametrize("betas", BETAS, ids=["scaled_linear", "linear", "cosine", "trained"])
@pytest.mark.parametrize("name", sorted(_VP_SCHEDULERS - {"EDMEulerScheduler"}))
def test_tables_are_the_schedulers_own(name, betas):
    try:
        scheduler = getattr(diffusers, name)(**betas)
    except ImportError as e:
        pytest.skip(str(e).strip())
    schedule, prediction_type = read(scheduler)
    assert prediction_type == "epsilon"
    assert schedule.num_timesteps == len(scheduler.alphas_cumprod)
    alpha, sigma = schedule(torch.arange(schedule.num_timesteps))
    own = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(alpha.double() ** 2, own, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(sigma.double() ** 2, 1 - own, rtol=1e-5, atol=1e-7)


def test_the_linear_table_is_the_published_one():
    betas = np.linspace(1e-4, 0.02, 1000)  # Ho et al. 2020
    schedule, _ = read(DDPMScheduler())
    alpha, sigma = schedule(torch.arange(1000))
    np.testing.assert_allclose(alpha.numpy() ** 2, np.cumprod(1 - betas), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(sigma.numpy() ** 2, 1 - np.cumprod(1 - betas), rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_zero_terminal_snr(name):
    scheduler = getattr(diffusers, name)(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    schedule, prediction_type = read(scheduler)
    assert prediction_type == "v_prediction"
    alpha, sigma = schedule(torch.tensor([0, 500, 998, 999]))
    # Samplers that divide by it put 2⁻²⁴ where the table has 0.
    torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod[[0, 500, 998, 999]], rtol=1e-5, atol=2**-23)
    assert alpha[3] == 0
    assert sigma[3] == 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_type_is_read(prediction_type):
    assert read(DDPMScheduler(prediction_type=prediction_type))[1] == prediction_type


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_noised_as_by_its_scheduler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    schedule, prediction_type = read(scheduler)
    assert (schedule, prediction_type) == (RectifiedFlow(1000), "flow")
    t = scheduler.timesteps[[0, 300, 999]]
    x, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = scheduler.scale_noise(x, t, noise)
    torch.testing.assert_close(add_noise(x, noise, *schedule(t)), expected)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchHeunDiscreteScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
        {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"},
    ],
)
def test_other_flows(config):
    assert read_scheduler(config) == (RectifiedFlow(1000), "flow")


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
def test_levels_and_scales_of_edm_are_the_schedulers_own(name, sigma_schedule):
    scheduler = getattr(diffusers, name)(sigma_data=0.7, sigma_schedule=sigma_schedule)
    schedule, prediction_type = read(scheduler)
    assert prediction_type == "edm"
    ramp = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    levels = getattr(scheduler, f"_compute_{sigma_schedule}_sigmas")(ramp).double()
    t = 1000 * (1 - ramp)
    torch.testing.assert_close(schedule.levels(t), levels, rtol=1e-5, atol=0)
    torch.testing.assert_close(schedule.network_time(t), scheduler.precondition_noise(levels).float())
    x, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    s = levels.float().view(-1, 1, 1, 1)
    expected = scheduler.precondition_inputs(0.7 * x + s * noise, s)
    torch.testing.assert_close(add_noise(x, noise, *schedule(t)), expected)


def test_predictions_of_edm():
    assert read(EDMEulerScheduler(prediction_type="v_prediction"))[1] == "v_prediction"
    with pytest.raises(InputError, match="'guess'"):
        read_scheduler({"_class_name": "EDMEulerScheduler", "prediction_type": "guess"})


@pytest.mark.parametrize(
    "name",
    [
        "CMStochasticIterativeScheduler",
        "CosineDPMSolverMultistepScheduler",
        "IPNDMScheduler",
        "ScoreSdeVeScheduler",
        "UnCLIPScheduler",
        "VQDiffusionScheduler",
    ],
)
def test_other_noise_is_refused(name):
    with pytest.raises(InputError, match=name):
        read_scheduler({"_class_name": name})


def test_continuous_times_and_unknown_predictions_are_refused():
    with pytest.raises(InputError, match="continuous"):
        read(EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"))
    with pytest.raises(InputError, match="'guess'"):
        read_scheduler({"_class_name": "DDPMScheduler", "prediction_type": "guess"})


VP = DiscreteVP(torch.tensor([0.9, 0.5, 0.1]))


@pytest.mark.parametrize("t", [-1, 3, 0.5, float("nan")])
def test_times_outside_of_a_table_are_refused(t):
    with pytest.raises(InputError, match="0 to 2"):
        VP(torch.tensor([0, t]))


@pytest.mark.parametrize("t", [-0.1, 1000.1])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), EDM()])
def test_times_outside_of_a_flow_or_of_edm_are_refused(schedule, t):
    with pytest.raises(InputError, match="between 0 and 1000"):
        schedule(torch.tensor([1, t]))


def test_times_keep_their_shape():
    t = torch.tensor([[0, 1], [2, 0]])
    for schedule in (VP, RectifiedFlow(), EDM()):
        alpha, sigma = schedule(t)
        assert alpha.shape == sigma.shape == t.shape
        assert alpha.dtype == sigma.dtype == torch.float32


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 2000))
def test_every_fraction_of_a_table_is_one_of_its_times(u, count):
    schedule = DiscreteVP(torch.linspace(0.9, 0.1, count))
    t = schedule.timesteps(torch.tensor([u], dtype=torch.float64))
    assert t.dtype == torch.int64
    assert t.item() == int(u * count)
    schedule(t)


@given(st.floats(0, 1, exclude_max=True))
def test_every_fraction_of_a_flow_is_one_of_its_times(u):
    t = RectifiedFlow().timesteps(torch.tensor([u], dtype=torch.float64))
    assert torch.equal(EDM().timesteps(torch.tensor([u], dtype=torch.float64)), t)
    assert t.dtype == torch.float32
    _, sigma = RectifiedFlow()(t)
    assert sigma.item() == pytest.approx(u, abs=1e-6)


def test_rows_are_noised_each_at_its_own_time():
    x, noise = torch.arange(24.0).view(2, 3, 4), torch.ones(2, 3, 4)
    expected = torch.stack([0.5 * x[0] + 2, 0.25 * x[1] + 3])
    assert torch.equal(add_noise(x, noise, torch.tensor([0.5, 0.25]), torch.tensor([2.0, 3.0])), expected)


def test_a_config_without_a_class_is_refused():
    """It might be of a flow as well as of a table."""
    with pytest.raises(InputError, match="_class_name is missing"):
        read_scheduler({"num_train_timesteps": 1000})
