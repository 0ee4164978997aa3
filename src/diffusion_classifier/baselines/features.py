"""A classifier on the features of a diffusion model: what its middle makes of a slightly noised image.

The paper's baseline of labelled data (section 5.1, appendix D.5, after Baranchuk et al. 2022): the network is given the
image at t = 100 of 1,000 without a class, and a head reads the output of its middle block.

Shape legend: B images, C channels, S edge of the features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer

from ..denoisers import load_denoiser
from ..denoisers.base import Denoiser, fingerprint
from ..denoisers.late import LateConditioned
from ..devices import to_device
from ..draws import Draws
from ..exceptions import InputError
from ..files import write_durably
from ..images import preprocess
from ..schedules import add_noise
from .hub import FEATURES, KnownClasses

HEADS = ("linear", "conv")
TIME = 0.1
"""Fraction of the schedule at which the paper takes features."""


def middle(denoiser: Denoiser) -> torch.nn.Module:
    """The block whose output is read.

    Raises:
        InputError: the network has none.
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
    """(B, C, S, S), float32, of latents (B, *) and noise (B, *), on the model's device; the same for all if None.

    Raises:
        InputError: the model has no null condition, or its middle holds more than a map of the image.
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


def build_head(kind: str, channels: int, num_classes: int) -> torch.nn.Module:
    """Reads features (B, C, S, S): "linear", of their mean; or "conv", the paper's two residual blocks before it."""
    blocks: list[torch.nn.Module] = []
    if kind == "conv":
        blocks = [ResNetBasicLayer(channels, channels), ResNetBasicLayer(channels, 2 * channels, stride=2)]
        channels *= 2
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*blocks, *pool, torch.nn.Linear(channels, num_classes))


class Features(KnownClasses):
    """A diffusion model with a head.

    Args:
        denoiser: the model.
        head: see `build_head`.
        class_names: those that the head was trained with.

    Attributes:
        batch_size: images that are classified at once.
        strategy: what runs have in place of one.
    """

    batch_size: int | str = 1
    strategy: ClassVar[str] = "features"

    def __init__(self, denoiser: Denoiser, head: torch.nn.Module, class_names: Sequence[str]) -> None:
        self.denoiser, self.head = denoiser, head.eval().requires_grad_(False)
        self.class_names = tuple(class_names)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Features:
        """Load a folder that `save` wrote, and the diffusion model that it names.

        Raises:
            InputError: a file cannot be used, or the model is another one than the head was trained for.
        """
        folder = Path(source)
        try:
            about = json.loads((folder / FEATURES).read_text("utf-8"))
            head = build_head(about["head"], about["channels"], len(about["class_names"]))
            head.load_state_dict(load_file(folder / "head.safetensors"))
            model, known = about["model"], about["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as e:
            raise InputError(f"{folder} cannot be used as a head on features: {e}") from e
        denoiser = load_denoiser(model, device=device, dtype=dtype)
        if denoiser.fingerprint() != known:
            raise InputError(f"{model} is another model than that for which {folder} was trained")
        return cls(denoiser, head.to(denoiser.device), about["class_names"])

    def save(self, folder: Path, model: str, kind: str, channels: int) -> None:
        """Head, and what is needed to find its model again."""
        about = {
            "model": model, "fingerprint": self.denoiser.fingerprint(), "head": kind, "channels": channels,
            "class_names": self.class_names,
        }  # fmt: skip
        save_file(self.head.state_dict(), folder / "head.safetensors")
        write_durably(folder / FEATURES, json.dumps(about, indent=2) + "\n")

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """What the diffusion model computes in."""
        return self.denoiser.dtype

    @property
    def image_size(self) -> int:
        """Edge of the images that the model reads."""
        return self.denoiser.image_size

    def fingerprint(self) -> str:
        """Tells models apart; see `Denoiser.fingerprint`."""
        return fingerprint([*self.denoiser.modules(), self.head])

    @torch.no_grad()
    def logits(self, image: Image) -> Tensor:
        """Of all classes, (K,), float32, for an RGB image; under noise that is the same for all images."""
        pixels = preprocess(image, self.image_size, crop=self.denoiser.crop)[None]
        latent = self.denoiser.encode(pixels.to(self.device))
        found: Tensor = self.head(features(self.denoiser, latent))[0]
        return found
