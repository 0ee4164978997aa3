"""The classifier as a differentiable function of pixels, for adversarial attacks and saliency.

Shape legend: B images, C channels, S edge, K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..denoisers.base import Denoiser
from ..denoisers.devices import to_device
from ..diffusion.draws import Draws
from ..diffusion.losses import LOSSES
from ..diffusion.prediction import split_variance, to_noise
from ..diffusion.schedules import add_noise
from ..diffusion.timestep_weights import Weights, weights_at
from ..errors import InputError


class DifferentiableScores(torch.nn.Module):
    """Logits -scale · mean error of images in [0, 1], whose softmax is the posterior (equation 6).

    Every image has the same draws. In `forward` all B·N·K predictions are one batch of the network.

    Args:
        denoiser: the model; its encoder must be differentiable, as that of a pixel-space model is.
        classes: K classes, as `Denoiser.condition` takes them.
        num_draws: N.
        scale: factor of the errors; see `posterior.scale_of`.
        loss: one of `losses.LOSSES`.
        draws: timesteps and noise; even timesteps if None.
        weights: timestep weights of the mean, see `timestep_weights.Weights`; uniform if None.
        fresh: whether each call uses the next N draws, so that an attack faces their expectation and not one sample
            (Athalye et al. 2018, "Synthesizing robust adversarial examples").

    Raises:
        InputError: the loss is unknown; the model does not know a class.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classes: Sequence[str] | Sequence[int],
        num_draws: int,
        scale: float,
        *,
        loss: str = "l2",
        draws: Draws | None = None,
        weights: Weights | None = None,
        fresh: bool = False,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise InputError(f"a differentiable loss is one of {', '.join(LOSSES)}; got {loss!r}")
        self.denoiser, self.conditioning = denoiser, denoiser.condition(classes).to(denoiser.device)
        self.num_draws, self.scale, self.loss, self.fresh = num_draws, scale, loss, fresh
        self.draws, self.weights = draws or Draws(), weights
        self.num_classes, self._calls = len(classes), 0

    def errors(self, images: Tensor) -> Tensor:
        """Return the errors (B, K, N), float32, of images (B, C, S, S) in [0, 1], C = 1 or 3.

        Raises:
            InputError: the images need a gradient, and the encoder does not pass it on.
        """
        return self._errors(images)[0]

    def _errors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors, and the timesteps (N,) of their draws."""
        model, n, k = self.denoiser, self.num_draws, self.num_classes
        which = range(self._calls * n, (self._calls + 1) * n)
        self._calls += self.fresh
        latents = model.encode(images.to(model.device).expand(-1, 3, -1, -1) * 2 - 1)
        if images.requires_grad and not latents.requires_grad:
            raise InputError("the encoder of this model does not pass gradients on: take a model of pixels")
        b, shape = len(latents), model.latent_shape
        times = self.draws.times(model.schedule, which, 0)
        t = times.repeat(b)
        eps = torch.stack([self.draws.noise(d, 0, shape) for d in which]).repeat(b, *[1] * len(shape))
        alpha, sigma = (to_device(a, model.device) for a in model.schedule(t))
        eps = to_device(eps, model.device)
        noisy = add_noise(latents.repeat_interleave(n, 0), eps, alpha, sigma)
        latent = torch.arange(b * n).repeat_interleave(k)
        rows = to_device(latent, model.device)
        classes = self.conditioning[torch.arange(k).repeat(b * n)]
        with model.prefix.shared(latent, model.device):
            output = model.forward(noisy[rows].to(model.dtype), to_device(t[latent], model.device), classes)
        output = split_variance(output, shape[0])[0]
        predicted = to_noise(output, noisy[rows], alpha[rows], sigma[rows], model.prediction_type)
        found: Tensor = LOSSES[self.loss](eps[rows], predicted).view(b, n, k).transpose(1, 2)
        return found, times

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K), float32, of images (B, C, S, S) in [0, 1]; raises as `errors`."""
        errors, times = self._errors(images)
        weights = weights_at(self.weights or (1.0, 1.0), times / self.denoiser.schedule.num_timesteps)
        return -self.scale * errors @ to_device((weights / weights.sum()).float(), errors.device)
