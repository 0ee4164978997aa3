"""The variational bound, compared with the divergence of two Gaussians whose means are written out."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.distributions import Normal, kl_divergence

from diffusion_classifier import DiffusionClassifier, Gradient
from diffusion_classifier.denoisers.families.class_unet import ClassUNet
from diffusion_classifier.diffusion.losses import variational_bound
from diffusion_classifier.diffusion.schedules import DiscreteVP, RectifiedFlow, read_scheduler
from diffusion_classifier.errors import InputError

CONFIG = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "variance_type": "learned_range"}
SCHEDULE, _ = read_scheduler(CONFIG)
T = [0, 1, 250, 999]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(x, x_t, t):
    """Mean of q(x_{t-1} | x_t, x), Ho et al. 2020, equation 7."""
    scheduler = DDPMScheduler(beta_schedule="linear")
    betas, bars = scheduler.betas.double(), scheduler.alphas_cumprod.double()
    before = bars[t - 1] if t > 0 else torch.tensor(1.0, dtype=torch.float64)
    mean = (before.sqrt() * betas[t] * x + (1 - betas[t]).sqrt() * (1 - before) * x_t) / (1 - bars[t])
    return mean, betas[t], betas[t] * (1 - before) / (1 - bars[t])


@pytest.mark.parametrize("t", T)
def test_is_the_divergence_of_the_two_steps(t):
    x, noise, predicted = randn(3, 1, 4, 2, 2)
    variance = randn(1, 4, 2, 2, seed=1).clamp(-1, 1)
    bar = DDPMScheduler(beta_schedule="linear").alphas_cumprod[t].double()
    x_t = bar.sqrt() * x + (1 - bar).sqrt() * noise
    mean, high, low = step(x, x_t, t)
    model_mean, _, _ = step((x_t - (1 - bar).sqrt() * predicted) / bar.sqrt(), x_t, t)
    if t == 0:
        _, _, low = step(x, x_t, 1)  # that of t = 0 is 0
    share = (variance + 1) / 2
    model = Normal(model_mean, torch.exp((share * high.log() + (1 - share) * low.log()) / 2))
    nats = -model.log_prob(x) if t == 0 else kl_divergence(Normal(mean, low.sqrt()), model)
    found = variational_bound(noise.float(), predicted.float(), variance.float(), torch.tensor([t]), SCHEDULE)
    # At t = 0 the table, in float32, leaves four digits of 1 - ᾱ.
    np.testing.assert_allclose(found, nats.mean() / np.log(2), rtol=1e-2 if t == 0 else 2e-3)


def test_rows_are_taken_each_at_its_own_time():
    noise, predicted, variance = randn(3, len(T), 4, 2, 2).float()
    together = variational_bound(noise, predicted, variance, torch.tensor(T), SCHEDULE)
    alone = [
        variational_bound(noise[i, None], predicted[i, None], variance[i, None], torch.tensor([t]), SCHEDULE)
        for i, t in enumerate(T)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_zero_terminal_snr_stays_finite():
    schedule = DiscreteVP(torch.tensor([0.9, 0.5, 0.0]))
    noise, predicted, variance = randn(3, 3, 4, 2, 2).float()
    assert variational_bound(noise, predicted, variance, torch.arange(3), schedule).isfinite().all()


def test_a_flow_has_none():
    with pytest.raises(InputError, match="table of times"):
        variational_bound(*randn(3, 1, 4, 2, 2).float(), torch.tensor([5]), RectifiedFlow())


def errors(clf, image, loss):
    return clf.errors(image, [0, 1], timesteps=[10, 500], loss=loss)


def test_as_losses_of_a_classifier(model_folder):
    clf = DiffusionClassifier.from_pretrained(model_folder("dit"), device="cpu", dtype="float32", batch_size=3)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    l2, bound, both = (errors(clf, image, loss) for loss in ("l2", "vlb", "l2+vlb"))
    torch.testing.assert_close(both, l2 + bound)
    assert not torch.allclose(l2, bound)
    result = clf.classify(image, [0, 1, 4], loss="vlb", strategy="fixed:4")[0]
    assert result.label is not None


def test_only_for_networks_that_predict_the_variance(model_folder, monkeypatch):
    image = np.zeros((16, 16, 3), np.uint8)
    clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", dtype="float32", batch_size=3)
    with pytest.raises(InputError, match="predicts no variance, which the loss l2\\+vlb needs"):
        errors(clf, image, "l2+vlb")
    monkeypatch.setattr(ClassUNet, "predict", None)
    with pytest.raises(InputError, match="predicts no variance, which the loss vlb needs"):
        clf.stream(iter(()), loss="vlb")  # before anything is read or predicted
    clf = DiffusionClassifier.from_pretrained(model_folder("dit"), device="cpu", dtype="float32", batch_size=3)
    with pytest.raises(InputError, match="shortlist by gradients needs"):
        clf.classify(image, [0, 1, 4], loss="vlb", shortlist=Gradient(keep=2), strategy="fixed:4")
