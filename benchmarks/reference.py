"""The published evaluation (Algorithm 2 of the paper) as a plain loop: what every speed here is a ratio to.

One image at a time; all draws of all remaining classes of a stage, class by class, in batches of its own of 32 rows;
float32 on a CPU, float16 on CUDA. Everything that costs time is done as in the authors' script: each row by itself, no
work shared, errors read back after every batch. Only draws and nested stages are ours, so that answers can be compared.
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
"""The authors' schedule for ten classes (CIFAR-10)."""
SHORT = Staged((8, 16), (3, 1))
"""For comparisons of the same work with the bundled model: 104 evaluations an image."""
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
    """Error table (K, N), NaN where not evaluated, and the winner, for one image (3, H, W) in [-1, 1]."""
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
