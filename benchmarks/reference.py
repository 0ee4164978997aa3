"""Plain loop of the paper's adaptive schedule (Algorithm 2), the baseline of all speed ratios.

The loop classifies one image at a time. In each stage, it evaluates all draws of the remaining classes, class by class,
in batches of 32 rows. It computes in float32 on a CPU and in float16 on CUDA.

It spends time as the authors' script does: no two rows share work, and errors are read back after every batch. Only the
draws and the nested stages differ from that script, so that predictions can be compared with the engine's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_classifier import Fixed, Staged
from diffusion_classifier.denoisers import Conditioning, Denoiser
from diffusion_classifier.diffusion import Draws, split_variance, to_noise

BATCH_SIZE = 32
PUBLISHED = Staged((50, 500), (5, 1))
"""The paper's adaptive schedule for ten classes (CIFAR-10)."""
SHORT = Staged((8, 16), (3, 1))
"""Shorter schedule to compare equal work with the bundled model: 104 evaluations per image."""
LOSSES: dict[str, Callable[..., Tensor]] = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


@torch.no_grad()
def reference(
    denoiser: Denoiser,
    image: Tensor,
    key: int,
    conditioning: Conditioning,
    schedule: Fixed | Staged,
    draws: Draws,
    loss: str = "l2",
) -> tuple[Tensor, int]:
    """Return the error table (K, N) of an image (3, H, W) in [-1, 1], NaN where not evaluated, and the best class."""
    if isinstance(schedule, Fixed):
        schedule = Staged((schedule.num_draws,), (1,))
    device, num_classes, num_draws = denoiser.device, len(conditioning), schedule.evaluated[-1]
    x = denoiser.encode(image[None].to(device))
    noise = torch.stack([draws.noise(n, key, denoiser.latent_shape) for n in range(num_draws)]).to(device)
    times = draws.times(denoiser.schedule, range(num_draws), key)
    errors = torch.full((num_classes, num_draws), torch.nan)
    remaining, seen = list(range(num_classes)), 0
    for evaluated, kept in zip(schedule.evaluated, schedule.kept, strict=True):
        pairs = [(c, n) for c in remaining for n in range(seen, evaluated)]
        for start in range(0, len(pairs), BATCH_SIZE):
            classes, ns = torch.tensor(pairs[start : start + BATCH_SIZE]).T
            t, eps = times[ns], noise[ns.to(device)]
            alpha, sigma = (a.to(device) for a in denoiser.schedule(t))
            noisy = alpha.view(-1, 1, 1, 1) * x + sigma.view(-1, 1, 1, 1) * eps
            output = denoiser.forward(noisy.to(denoiser.dtype), t.to(device), conditioning[classes])
            output, _ = split_variance(output, x.shape[1])
            predicted = to_noise(output, noisy, alpha, sigma, denoiser.prediction_type)
            errors[classes, ns] = LOSSES[loss](predicted, eps, reduction="none").mean((1, 2, 3)).cpu()
        means = errors[:, :evaluated].mean(1)
        remaining = sorted(remaining, key=lambda c: float(means[c]))[:kept]
        seen = evaluated
    return errors, remaining[0]
