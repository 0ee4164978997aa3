"""Images drawn from a model: what it takes the classes to look like.

Shape legend: B images, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..diffusion.schedules import add_noise
from ..errors import InputError
from .base import Conditioning, Denoiser, without_advice
from .class_conditional import ClassConditional
from .devices import to_device
from .families.text_transformers import Flux
from .text_conditional import TextConditional

BATCH = 16
"""Images that are drawn at once."""


def ddim(denoiser: Denoiser, conditioning: Conditioning, noise: Tensor, *, steps: int = 50, **options: Any) -> Tensor:
    """Latents (B, *) from noise (B, *), without randomness (Song et al. 2021, "DDIM", equation 12 with σ = 0).

    Args:
        denoiser: the model.
        conditioning: B rows.
        noise: on the model's device.
        steps: from the end of the schedule to its start, evenly.
        options: `null`, `guidance` and `clip`; see `_follow`.
    """
    return _follow(denoiser, conditioning, noise, _times(denoiser, steps), **options)


def invert(denoiser: Denoiser, conditioning: Conditioning, latents: Tensor, *, steps: int = 50) -> Tensor:
    """Noise (B, *) from which `ddim` comes near the latents (B, *): the same way back (paper, section 4.1, figure 5).

    The error goes as the length of a step, since ε̂ is taken at the other end of it.
    """
    return _follow(denoiser, conditioning, latents, _times(denoiser, steps).flip(0))


def _times(denoiser: Denoiser, steps: int) -> Tensor:
    # Not from the very end, where with zero terminal SNR nothing can be said of x by the noise.
    last = 1 - 1.5 / denoiser.schedule.num_timesteps
    return denoiser.schedule.timesteps(torch.linspace(1, 0, steps + 1, dtype=torch.float64).clamp(max=last))


@torch.no_grad()
def _follow(
    denoiser: Denoiser,
    conditioning: Conditioning,
    x: Tensor,
    times: Tensor,
    *,
    null: Conditioning | None = None,
    guidance: float = 1.0,
    clip: bool = False,
) -> Tensor:
    """Latents (B, *) at the last of the times, from those at the first, along the flow of probability.

    Args:
        denoiser: the model.
        conditioning: B rows.
        x: on the model's device.
        times: rising or falling.
        null: B rows of the null condition, for guidance other than 1.
        guidance: ε̂ is that of the null condition, and so many times what the condition changes (Ho and Salimans 2022).
        clip: keep the estimate of x in [-1, 1], for drawing by models of pixels.
    """
    schedule, index = denoiser.schedule, torch.arange(len(x))
    for now, then in pairwise(times):
        t = now.expand(len(x))
        eps = finite_noise(denoiser, x, t, conditioning, index)
        if null is not None:
            without = finite_noise(denoiser, x, t, null, index)
            eps = without + guidance * (eps - without)
        alpha, sigma = (to_device(a.view(-1, *[1] * (x.ndim - 1)), x.device) for a in schedule(t))
        estimate = (x - sigma * eps) / alpha
        if clip:
            estimate = estimate.clamp(-1 / schedule.sigma_data, 1 / schedule.sigma_data)
            eps = (x - alpha * estimate) / sigma
        x = add_noise(estimate, eps, *(to_device(a, x.device) for a in schedule(then.expand(len(x)))))
    return x


def finite_noise(denoiser: Denoiser, x: Tensor, t: Tensor, conditioning: Conditioning, index: Tensor) -> Tensor:
    """As `Denoiser.predict_noise`; once more in float32 where 16 bits overflow.

    Raises:
        InputError: it is not finite in float32 either.
    """
    eps = denoiser.predict_noise(x, t, conditioning, index)
    if not eps.isfinite().all():
        with denoiser.full_precision():
            eps = denoiser.predict_noise(x, t, conditioning, index)
        if not eps.isfinite().all():
            raise InputError("the prediction of the network is not finite")
    return eps


def draw_images(
    denoiser: Denoiser,
    classes: Sequence[str] | Sequence[int],
    seeds: Sequence[int],
    *,
    steps: int = 50,
    guidance: float | None = None,
) -> Iterator[Image.Image]:
    """One image of each class or prompt. Text-to-image models draw by their own pipeline, others by `ddim`.

    Args:
        denoiser: the model.
        classes: one for each image.
        seeds: of the noise of each image, which depends on nothing else.
        steps: of sampling.
        guidance: see `_follow`; that of the family's pipeline if None, which is none for U-Nets of classes.

    Raises:
        InputError: no step, a class that the model does not know, guidance of a model without a null condition, or a
            model that cannot draw.
    """
    if steps < 1:
        raise InputError(f"at least 1 step is needed to draw an image; got {steps}")
    for start in range(0, len(classes), BATCH):
        some = slice(start, start + BATCH)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
        if isinstance(denoiser, TextConditional):
            denoiser.condition(classes[some])  # for its complaints
            yield from _by_pipeline(denoiser, classes[some], generators, steps, guidance)
        elif isinstance(denoiser, ClassConditional):
            noise = torch.stack([torch.randn(denoiser.latent_shape, generator=g) for g in generators])
            names: Any = list(dict.fromkeys(classes[some]))
            rows = torch.tensor([names.index(c) for c in classes[some]])
            null = None
            guidance = denoiser.guidance if guidance is None else guidance
            if guidance != 1.0:
                null = denoiser.null_condition()[torch.zeros(len(noise), dtype=torch.int64)]
            latents = ddim(
                denoiser, denoiser.condition(names)[rows], noise.to(denoiser.device), steps=steps, null=null,
                guidance=guidance, clip=denoiser.in_pixels,
            )  # fmt: skip
            yield from map(to_image, denoiser.decode(latents).float().cpu())
        else:
            raise InputError(f"no images can be drawn from a {denoiser.family} model")


def _by_pipeline(
    denoiser: TextConditional, prompts: Any, generators: list[torch.Generator], steps: int, guidance: float | None
) -> list[Image.Image]:
    options: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
    options |= {"height": denoiser.image_size, "width": denoiser.image_size}
    pipeline = denoiser.pipeline
    with without_advice():  # the import tells what image processors, not used here, would need
        from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
    if isinstance(pipeline, StableDiffusionImg2ImgPipeline):  # which begins with an image
        pipeline = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    if isinstance(denoiser, Flux):
        options["max_sequence_length"] = denoiser.max_tokens  # padding is read, too
    pipeline.set_progress_bar_config(disable=True)
    with denoiser.encoders_at_hand(), _each_in_its_dtype(denoiser):
        drawn = pipeline(list(prompts), num_inference_steps=steps, generator=generators, **options)
    images: list[Image.Image] = drawn.images
    return images


@contextmanager
def _each_in_its_dtype(denoiser: TextConditional) -> Iterator[None]:
    """Encoders of text and images are in another dtype than the network, as some overflow in that: so they stay."""
    network, vae = denoiser.network, getattr(denoiser.pipeline, "vae", None)
    forward, narrow = network.forward, denoiser.dtype != torch.float32

    def run(*args: Any, **options: Any) -> Any:
        with torch.autocast(denoiser.device.type, denoiser.dtype, enabled=narrow):
            return forward(*args, **options)

    network.forward = run
    if vae is not None:
        decode = vae.decode
        vae.decode = lambda latents, *args, **options: decode(latents.to(vae.dtype), *args, **options)
    try:
        yield
    finally:
        network.forward = forward
        if vae is not None:
            vae.decode = decode


def to_image(pixels: Tensor) -> Image.Image:
    """From (1 or 3, S, S) in [-1, 1]."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
