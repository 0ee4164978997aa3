"""Shortlist by gradients: all classes from one backward pass (paper, section 7).

At the mean s̄ of the network's class inputs, one gradient gives the linearised error of every class at once,

    error(c) ≈ error(s̄) + ⟨∂error/∂s, s_c - s̄⟩,

for the price of a prediction and its derivative: two predictions per draw, however many classes there are. It is most
accurate for a coordinate s in which the class enters the network linearly; see `Denoiser.class_inputs`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from ...denoisers.devices import out_of_memory, to_device
from ...diffusion.losses import LOSSES
from ...diffusion.prediction import split_variance, to_noise
from ...diffusion.schedules import add_noise
from ...diffusion.timestep_weights import weights_at
from ...errors import InputError
from ..jobs import Cost, ImageJob
from .base import SearchContext, check_keep, narrowed


@dataclass(frozen=True)
class Gradient:
    """Keep the best classes by the linearised error of a few draws, at two predictions per draw.

    Args:
        keep: number of classes to keep.
        num_draws: number of draws; the search uses the same ones.
    """

    wants_pictures: ClassVar[bool] = False
    keep: int = 20
    num_draws: int = 4

    def narrow(self, context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        """See `Shortlist.narrow`."""
        check_keep(self.keep, len(context.class_names))
        context.check_draws(self.num_draws)
        if context.settings.loss not in LOSSES:
            raise InputError(
                f"a shortlist by gradients needs the loss {', '.join(LOSSES)}; got {context.settings.loss}"
            )
        if context.denoiser.compiled:
            raise InputError("a compiled network cannot be differentiated here: make this shortlist without --compile")
        return self._narrow(context, jobs)

    def _narrow(self, context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        size = max(1, context.scorer.prepare(context.conditioning) // self.num_draws)
        waiting: list[ImageJob] = []
        while waiting := waiting or list(islice(jobs, size)):
            batch, start = waiting[:size], time.perf_counter()
            try:
                values = linearised_errors(context, batch, self.num_draws)
            except (MemoryError, RuntimeError) as e:  # derivatives need more memory than predictions
                if len(batch) == 1 or not out_of_memory(e):
                    raise
                size = len(batch) // 2
                continue
            waiting = waiting[len(batch) :]
            seconds = (time.perf_counter() - start) / len(batch)
            cost = Cost(2 * self.num_draws, 2.0 * self.num_draws, seconds)
            for job, row in zip(batch, values, strict=True):
                yield narrowed(job, row, self.keep, cost)

    def __str__(self) -> str:
        """gradient:DRAWS."""
        return f"gradient:{self.num_draws}"


def linearised_errors(context: SearchContext, jobs: list[ImageJob], num_draws: int) -> Tensor:
    """Return mean linearised errors of the classes, (images, K), float64, up to a constant per image."""
    denoiser, schedule, settings = context.denoiser, context.denoiser.schedule, context.settings
    device = denoiser.device
    latents = torch.cat([denoiser.encode(to_device(job.image[None], device)) for job in jobs])
    times = torch.stack([settings.draws.times(schedule, range(num_draws), job.key) for job in jobs])
    noise = [settings.draws.noise(n, job.key, denoiser.latent_shape) for job in jobs for n in range(num_draws)]
    eps, t = to_device(torch.stack(noise), device), times.flatten()
    alpha, sigma = (to_device(a, device) for a in schedule(t))
    noisy = add_noise(latents.repeat_interleave(num_draws, 0), eps, alpha, sigma)
    weights = torch.ones_like(t, dtype=torch.float64)
    if settings.weights is not None:
        weights = weights_at(settings.weights, t / schedule.num_timesteps)
    with torch.enable_grad(), denoiser.class_inputs(to_device(t, device), context.conditioning) as inputs:
        output = denoiser.forward(noisy.to(denoiser.dtype), to_device(t, device), inputs.mean)
        predicted = to_noise(split_variance(output, noisy.shape[1])[0], noisy, alpha, sigma, denoiser.prediction_type)
        # A sum over dimensions: derivatives of a mean are so small that they vanish in float16.
        errors = LOSSES[settings.loss](eps, predicted) * eps[0].numel()
        gradients = torch.autograd.grad(errors.sum(), inputs.leaves)
    values = inputs.project(gradients).double().cpu() * weights[:, None]
    return values.view(len(jobs), num_draws, -1).mean(1)
