"""Class-conditional Gaussians: a denoiser whose optimum, errors and posterior are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...diffusion.prediction import target
from ...diffusion.schedules import Schedule
from ..base import Conditioning, Denoiser
from ..class_conditional import class_ids


class Gaussian(Denoiser):
    """Optimal denoiser of p(x|c) = N(μ_c, diag v_c), on which every claim of the classifier can be checked.

    With x_t = α·x + σ·ε, the optimal x̂ = μ + α·v/(α²v + σ²)·(x_t - α·μ) and ε̂ = σ/(α²v + σ²)·(x_t - α·μ).

    Args:
        means: μ, (K, 3, S, S): the latent is the image itself.
        variances: v, (K, 3, S, S), positive.
        schedule: any schedule.
        prediction_type: what `forward` returns. ε̂ is the same for all types.
        class_names: K names. Default: the indices.
    """

    family = "gaussian"
    looks_at_values = True
    conditions = ("mean", "variance")

    def __init__(
        self,
        means: Tensor,
        variances: Tensor,
        schedule: Schedule,
        prediction_type: str = "epsilon",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            {"none": torch.nn.Identity()}, schedule, prediction_type, tuple(means.shape[1:]), means.shape[-1]
        )
        self.means, self.variances = means, variances
        self.class_names = tuple(class_names or map(str, range(len(means))))

    def encode(self, images: Tensor) -> Tensor:
        """Return the argument: latents are the images themselves."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """Return the argument: latents are the images themselves."""
        return latents

    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """Return means and variances of the classes."""
        assert self.class_names is not None
        ids = class_ids(classes, self.class_names)
        return Conditioning({"mean": self.means[ids], "variance": self.variances[ids]})

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the optimal prediction, in the form of the prediction type."""
        mean, variance = conditioning.tensors["mean"], conditioning.tensors["variance"]
        alpha, sigma = (a.view(-1, *[1] * (noisy.ndim - 1)) for a in self.schedule(t))
        centred = (noisy - alpha * mean) / (alpha**2 * variance + sigma**2)
        x, eps = mean + alpha * variance * centred, sigma * centred
        return target(x, eps, alpha.flatten(), sigma.flatten(), self.prediction_type)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Return log p(x|c), (B, K), for x (B, 3, S, S), in float64."""
        x, mean, variance = x.double()[:, None], self.means.double(), self.variances.double()
        terms = (x - mean) ** 2 / variance + torch.log(2 * torch.pi * variance)
        return -0.5 * terms.flatten(2).sum(2)

    def expected_error(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E_ε of the mean squared error of ε̂, (K, T), for one x (3, S, S) and times t (T,), in float64."""
        alpha, sigma = (a.double().view(-1, 1, 1, 1) for a in self.schedule(t))
        mean, variance = self.means.double()[:, None], self.variances.double()[:, None]
        gain = sigma / (alpha**2 * variance + sigma**2)
        errors = (1 - gain * sigma) ** 2 + gain**2 * alpha**2 * (x.double() - mean) ** 2
        return errors.flatten(2).mean(2)
