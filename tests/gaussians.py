"""Class-conditional Gaussians on tiny images, and the noise schedules that tests use with them."""

import torch

from diffusion_classifier.denoisers.families.gaussian import Gaussian
from diffusion_classifier.diffusion.schedules import RectifiedFlow, read_scheduler

VP = {
    "linear": {},
    "zero-snr": {"rescale_betas_zero_snr": True},
    "scaled-linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
SCHEDULES = {name: read_scheduler({"_class_name": "DDPMScheduler", **config})[0] for name, config in VP.items()}
SCHEDULES["flow"] = RectifiedFlow(1000)


def gaussian(num_classes=3, size=2, schedule="linear", prediction_type="epsilon", class_names=None, seed=0):
    """Build a Gaussian denoiser of K overlapping classes on images (3, S, S)."""
    rng = torch.Generator().manual_seed(seed)
    means = 0.5 * torch.randn(num_classes, 3, size, size, generator=rng)
    variances = 0.1 + 0.4 * torch.rand(num_classes, 3, size, size, generator=rng)
    return Gaussian(means, variances, SCHEDULES[schedule], prediction_type, class_names)
