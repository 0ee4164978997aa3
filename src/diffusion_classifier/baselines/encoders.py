"""Encoders from images to features: the middle block of a diffusion model, or an encoder of transformers.

Shape legend: B images, C channels, S height and width of the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.images import preprocess
from ..denoisers import load_denoiser
from ..denoisers.base import Denoiser
from ..denoisers.devices import to_device
from ..denoisers.families.late import LateConditioned
from ..diffusion.draws import Draws
from ..diffusion.schedules import add_noise
from ..errors import InputError
from .base import HubNetwork
from .pretrained import ModelFiles, as_in_training, load_hub_model
from .supervised import Supervised

ENCODERS = ("diffusion", "hub")
TIME = 0.1
"""Fraction of the schedule at which the paper takes features: t = 100 of 1,000."""


def middle(denoiser: Denoiser) -> torch.nn.Module:
    """Return the middle block of the network, whose output is used as features.

    Raises:
        InputError: the network has no middle block.
    """
    network: Any = denoiser.network
    if isinstance(network, LateConditioned):
        network = network.trunk
    block = getattr(network, "mid_block", None)
    if block is None:
        blocks = getattr(network, "transformer_blocks", None) or [None]
        block = blocks[(len(blocks) - 1) // 2]
    if block is None:
        raise InputError(f"a {type(network).__name__} has no middle block whose features could be read")
    found: torch.nn.Module = block
    return found


@torch.no_grad()
def features(denoiser: Denoiser, latents: Tensor, noise: Tensor | None = None) -> Tensor:
    """Return features (B, C, S, S), float32.

    Args:
        denoiser: the diffusion model.
        latents: (B, *), on the model's device.
        noise: (B, *), on the model's device; the same noise for all images if None.

    Raises:
        InputError: the model has no null condition, or its middle block holds more than a map of the image.
    """
    b = len(latents)
    if noise is None:
        noise = Draws().noise(0, 0, latents.shape[1:]).to(latents.device).expand_as(latents)
    t = denoiser.schedule.timesteps(torch.full((b,), TIME, dtype=torch.float64))
    alpha, sigma = (to_device(a, latents.device) for a in denoiser.schedule(t))
    noisy = add_noise(latents, noise, alpha, sigma).to(denoiser.dtype)
    null = denoiser.null_condition()[torch.zeros(b, dtype=torch.int64)]
    seen: list[Any] = []
    hook = middle(denoiser).register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        denoiser.forward(noisy, to_device(t, latents.device), null.to(latents.device))
    finally:
        hook.remove()
    output = seen[0][-1] if isinstance(seen[0], tuple) else seen[0]
    if output.ndim == 3:  # tokens of a transformer
        edge = math.isqrt(output.shape[1])
        if edge**2 != output.shape[1]:
            raise InputError(f"the middle of this model has {output.shape[1]} tokens, which are no square of the image")
        output = output.transpose(1, 2).unflatten(2, (edge, edge))
    result: Tensor = output.float()
    return result


class Encoder(Protocol):
    """A network that computes features of images.

    Attributes:
        kind: one of `ENCODERS`.
    """

    kind: ClassVar[str]

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def image_size(self) -> int: ...
    def modules(self) -> Sequence[torch.nn.Module]:
        """Return the modules whose weights determine the features."""

    def fingerprint(self) -> str:
        """Return a hash of the weights; see `Denoiser.fingerprint`."""

    def __call__(self, images: Sequence[Image]) -> Tensor:
        """Return features (B, C, S, S), float32, of RGB images, on the encoder's device."""


class DiffusionFeatures:
    """The middle block of a diffusion model at t = 100 of 1,000, under the null condition.

    These are the paper's features (section 5.1, appendix D.5, after Baranchuk et al. 2022). All images get the same
    noise.
    """

    kind: ClassVar[str] = "diffusion"

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    @property
    def device(self) -> torch.device:
        """See `Encoder`."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """See `Encoder`."""
        return self.denoiser.dtype

    @property
    def image_size(self) -> int:
        """See `Encoder`."""
        return self.denoiser.image_size

    def modules(self) -> Sequence[torch.nn.Module]:
        """See `Encoder`."""
        return self.denoiser.modules()

    def fingerprint(self) -> str:
        """See `Encoder`."""
        return self.denoiser.fingerprint()

    @torch.no_grad()
    def __call__(self, images: Sequence[Image]) -> Tensor:
        """See `Encoder`."""
        size, crop = self.image_size, self.denoiser.crop
        pixels = torch.stack([preprocess(image, size, crop=crop) for image in images])
        return features(self.denoiser, self.denoiser.encode(pixels.to(self.device)))


class HubEncoder(HubNetwork):
    """An image encoder of transformers.

    A contrastive model gives its image embedding. A classifier or another encoder gives its last hidden state: a map,
    or the mean of its tokens.
    """

    kind: ClassVar[str] = "hub"

    def __init__(self, model: Any, image_processor: Any) -> None:
        self.model, self.image_processor = model.eval().requires_grad_(False), image_processor

    def modules(self) -> Sequence[torch.nn.Module]:
        """See `Encoder`."""
        return [self.model]

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image]) -> Tensor:
        """See `Encoder`."""
        images = [as_in_training(self.model, image) for image in images]
        inputs = self.image_processor(images=images, return_tensors="pt").to(self.device, self.dtype)
        if hasattr(self.model, "get_image_features"):
            found = self.model.get_image_features(**inputs)
            found = getattr(found, "pooler_output", found)  # transformers 5 wraps it
        else:
            found = self.model(**inputs).last_hidden_state
        if found.ndim == 3:
            found = found.mean(1)
        result: Tensor = found.float()
        return result if result.ndim == 4 else result[:, :, None, None]


def load_encoder(
    source: str | Path, kind: str, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
) -> Encoder:
    """Load an encoder of one of the `ENCODERS`.

    Raises:
        InputError: as in `load_denoiser` and `load_hub_model`.
    """
    if kind == "diffusion":
        return DiffusionFeatures(load_denoiser(source, device=device, dtype=dtype))
    classifier = Supervised.recognizes(ModelFiles(source))
    model, images, _ = load_hub_model(
        source, "AutoModelForImageClassification" if classifier else "AutoModel", device, dtype, headless=not classifier
    )
    return HubEncoder(model.base_model if classifier else model, images)
