"""Inversion: take an image to noise under a prompt and back, and measure how well it is reconstructed.

A prompt that describes the image should reconstruct it better than another one (paper, figure 5).

Shape legend: P prompts, C channels, S edge of the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import ImageSource, load_image, preprocess
from ..denoisers.base import Denoiser
from ..denoisers.sampling import BATCH, ddim, invert, to_image
from ..errors import InputError


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction of an image under a prompt.

    Args:
        prompt: the prompt; None for the autoencoder alone.
        image: the reconstruction.
        rmse: root mean squared error of pixel values in [0, 1].
        ssim: structural similarity (Wang et al. 2004), at most 1.
        lpips: perceptual distance (Zhang et al. 2018); None if the library lpips is not installed.
    """

    prompt: str | None
    image: Image.Image
    rmse: float
    ssim: float
    lpips: float | None = None


def reconstruct(
    denoiser: Denoiser,
    image: ImageSource,
    prompts: Sequence[str] | Sequence[int],
    *,
    steps: int = 50,
    guidance: float = 1.0,
) -> tuple[Image.Image, list[Reconstruction]]:
    """Reconstruct an image under each prompt.

    Args:
        denoiser: the model.
        image: the image.
        prompts: P prompts, or names of the model's classes.
        steps: number of steps each way.
        guidance: guidance scale on the way to the image, see `sampling.ddim`. The way to noise has no guidance.

    Returns:
        The image at the model's resolution, and its reconstructions.

    Raises:
        InputError: steps or prompts are missing; the model has no null condition for guidance; as `load_image` and
            `Denoiser.condition`; scikit-image is not installed.
    """
    if steps < 1 or not prompts:
        raise InputError(f"at least one step and one prompt are needed; got {steps} and {len(prompts)}")
    pixels = preprocess(load_image(image).image, denoiser.image_size, crop=denoiser.crop)[None].to(denoiser.device)
    conditioning = denoiser.condition(prompts).to(denoiser.device)
    latent = denoiser.encode(pixels)
    back = denoiser.decode(latent)
    original = back if denoiser.in_pixels else pixels
    null = denoiser.null_condition() if guidance != 1 else None
    found = []
    for some in torch.split(torch.arange(len(prompts)), BATCH):
        options: dict[str, Any] = {}
        if null is not None:
            rows = null[torch.zeros(len(some), dtype=torch.int64)]
            options = {"null": rows.to(denoiser.device), "guidance": guidance}
        latents = latent.expand(len(some), *latent.shape[1:])
        noise = invert(denoiser, conditioning[some], latents, steps=steps)
        images = denoiser.decode(ddim(denoiser, conditioning[some], noise, steps=steps, **options))
        found += [_compared(str(prompts[i]), original[0], image) for i, image in zip(some, images, strict=True)]
    if not denoiser.in_pixels:
        found.insert(0, _compared(None, original[0], back[0]))
    return to_image(original[0].float().cpu()), found


def _compared(prompt: str | None, original: Tensor, image: Tensor) -> Reconstruction:
    """Compare two images (C, S, S) in [-1, 1]."""
    check_skimage()
    from skimage.metrics import structural_similarity

    a, b = ((x.float().cpu().clamp(-1, 1) + 1) / 2 for x in (original, image))
    window = min(7, a.shape[-1] - 1 + a.shape[-1] % 2)
    ssim = structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=1.0, win_size=window)
    rmse = float((a - b).square().mean().sqrt())
    return Reconstruction(prompt, to_image(image.float().cpu()), rmse, float(ssim), _lpips(a, b))


def check_skimage() -> None:
    """Raise if scikit-image is not installed.

    Raises:
        InputError: it is not.
    """
    if find_spec("skimage") is None:
        raise InputError("similarity needs scikit-image: pip install 'diffusion-classifier[inversion]'")


@cache
def _perceptual() -> Any:
    """Return the network of LPIPS; None if it or its weights are unavailable."""
    try:
        from lpips import LPIPS

        return LPIPS(verbose=False)
    except (ImportError, OSError):
        return None


def _lpips(a: Tensor, b: Tensor) -> float | None:
    network = _perceptual()
    if network is None:
        return None
    edge = max(64, a.shape[-1])  # the network halves images too often for smaller ones
    pair = (x.expand(3, -1, -1)[None] * 2 - 1 for x in (a, b))
    with torch.inference_mode():
        return float(network(*(torch.nn.functional.interpolate(x, size=edge, mode="bilinear") for x in pair)))


def refined(caption: str, class_name: str, noun: str) -> str:
    """Insert the class name before the noun of a caption, as the authors did with captions of BLIP (figure 5).

    `refined("a cat on a sofa", "Birman", "cat")` is "a Birman cat on a sofa", and the same for the name "Birman cat".

    Raises:
        InputError: the caption lacks the noun.
    """
    found = re.search(rf"\b{re.escape(noun)}\b", caption, re.IGNORECASE)
    if not noun or found is None:
        raise InputError(f"the caption {caption!r} does not have the word {noun!r}, before which the name would go")
    before = re.sub(rf"\s*\b{re.escape(noun)}$", "", class_name, flags=re.IGNORECASE)
    return f"{caption[: found.start()]}{before} {caption[found.start() :]}" if before else caption


class Captioner:
    """Generates captions of images with BLIP, or another image-to-text model of transformers.

    Args:
        source: folder or hub id, such as "Salesforce/blip-image-captioning-base".
        device: device of the network.

    Raises:
        InputError: as `load_hub_model`.
    """

    def __init__(self, source: str | Path, device: str | torch.device = "auto") -> None:
        from ..baselines.pretrained import load_hub_model

        kind = "AutoModelForImageTextToText"
        self.model, self.images, self.tokenizer = load_hub_model(source, kind, device, with_tokenizer=True)
        self.model.eval()

    def __call__(self, image: Image.Image, max_tokens: int = 30) -> str:
        """Return a caption of an RGB image."""
        pixels = self.images(images=image, return_tensors="pt").to(self.model.device)
        with torch.inference_mode():
            tokens = self.model.generate(**pixels, max_new_tokens=max_tokens, do_sample=False)
        return str(self.tokenizer.decode(np.asarray(tokens[0].cpu()), skip_special_tokens=True)).strip()
