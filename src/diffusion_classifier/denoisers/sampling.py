"""Sample images from a model.

Shape legend: B images, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from .shared_prefix import replaced
from .text_conditional import TextConditional

BATCH = 16
"""Number of images per batch."""


def ddim(denoiser: Denoiser, conditioning: Conditioning, noise: Tensor, *, steps: int = 50, **options: Any) -> Tensor:
    """Sample latents (B, *) from noise (B, *) deterministically (Song et al. 2021, "DDIM", equation 12 with σ = 0).

    Args:
        denoiser: model.
        conditioning: B rows.
        noise: noise on the model's device.
        steps: number of even steps from the end of the schedule to its start.
        options: `null`, `guidance` and `clip`; see `_follow`.
    """
    return _follow(denoiser, conditioning, noise, _times(denoiser, steps), **options)


def invert(denoiser: Denoiser, conditioning: Conditioning, latents: Tensor, *, steps: int = 50) -> Tensor:
    """Return noise (B, *) from which `ddim` approximates the latents (B, *) (paper, section 4.1, figure 5).

    The error is proportional to the length of a step, because ε̂ is evaluated at the other end of it.
    """
    return _follow(denoiser, conditioning, latents, _times(denoiser, steps).flip(0))


def _times(denoiser: Denoiser, steps: int) -> Tensor:
    # Not from the very end, where with zero terminal SNR the noise does not determine x.
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
    """Follow the probability flow from the first of the times to the last, and return the latents (B, *) there.

    Args:
        denoiser: model.
        conditioning: B rows.
        x: latents (B, *) at the first time, on the model's device.
        times: increasing or decreasing times.
        null: B rows of the null condition, for guidance other than 1.
        guidance: ε̂ = ε̂_null + guidance · (ε̂_cond - ε̂_null) (Ho and Salimans 2022).
        clip: keep the estimate of x in [-1, 1], as sampling from models in pixel space does.
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
    """Return `Denoiser.predict_noise`, computed again in float32 if it overflowed in 16 bits.

    Raises:
        InputError: the prediction is not finite in float32 either.
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
    """Sample one image per class or prompt: text-to-image models by their own pipeline, others by `ddim`.

    Args:
        denoiser: model.
        classes: class or prompt of each image.
        seeds: seed of each image's noise. The noise depends on the seed alone.
        steps: number of sampling steps.
        guidance: see `_follow`. Default: that of the family's pipeline, which is 1 for class-conditional U-Nets.

    Raises:
        InputError: no step, an unknown class, guidance for a model without a null condition, or a model from which no
            images can be sampled.
    """
    if steps < 1:
        raise InputError(f"at least 1 step is needed to draw an image; got {steps}")
    for start in range(0, len(classes), BATCH):
        some = slice(start, start + BATCH)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
        if isinstance(denoiser, TextConditional):
            denoiser.condition(classes[some])  # to raise its errors
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
    options = denoiser.sampling_options() | ({} if guidance is None else {"guidance_scale": guidance})
    options |= {"height": denoiser.image_size, "width": denoiser.image_size}
    pipeline = denoiser.pipeline
    with without_advice():  # the import warns about image processors, which are not used here
        from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
    if isinstance(pipeline, StableDiffusionImg2ImgPipeline):  # it would start from an image
        pipeline = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    with denoiser.encoders_at_hand(), _autocast(denoiser):
        drawn = pipeline(list(prompts), num_inference_steps=steps, generator=generators, **options)
    images: list[Image.Image] = drawn.images
    return images


@contextmanager
def _autocast(denoiser: TextConditional) -> Iterator[None]:
    """Let only the network compute in its dtype: text encoders and autoencoders may overflow in float16."""
    network, vae = denoiser.network, getattr(denoiser.pipeline, "vae", None)
    forward, narrow = network.forward, denoiser.dtype != torch.float32

    def run(*args: Any, **options: Any) -> Any:
        with torch.autocast(denoiser.device.type, denoiser.dtype, enabled=narrow):
            return forward(*args, **options)

    with ExitStack() as stack:
        stack.enter_context(replaced(network, "forward", run))
        if vae is not None:
            decode = vae.decode

            def decode_in_its_dtype(latents: Tensor, *args: Any, **options: Any) -> Any:
                return decode(latents.to(vae.dtype), *args, **options)

            stack.enter_context(replaced(vae, "decode", decode_in_its_dtype))
        yield


def to_image(pixels: Tensor) -> Image.Image:
    """Convert pixels (1 or 3, S, S) in [-1, 1] to an image."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
