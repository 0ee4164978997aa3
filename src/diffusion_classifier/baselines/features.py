"""Classifier heads on features of images, from a diffusion model or any other encoder.

Shape legend: B images, C channels, S height and width of the features, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from PIL.Image import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer

from ..denoisers.base import fingerprint
from ..denoisers.devices import one_line
from ..denoisers.networks import FAULTS
from ..denoisers.weight_files import check_floating, stored_dtypes
from ..errors import InputError
from ..files import write_durably
from .base import KnownClasses
from .encoders import ENCODERS, Encoder, load_encoder
from .pretrained import ModelFiles

FEATURES = "features.json"
"""File by which a folder with a head on features is recognized."""
HEADS = ("linear", "conv")
"""Heads that can be trained by gradient descent."""


class Gaussians(torch.nn.Module):
    """Layer from features (B, C) to half the negative squared Mahalanobis distances (B, K) from the class means.

    Args:
        means: (K, C).
        covariance: (C, C), shared by all classes.

    Raises:
        InputError: the covariance is singular.
    """

    def __init__(self, means: Tensor, covariance: Tensor) -> None:
        super().__init__()
        try:
            root = torch.linalg.inv(torch.linalg.cholesky(covariance.double()))
        except torch.linalg.LinAlgError as e:  # type: ignore[attr-defined]
            raise InputError("features do not vary within any class: give other images, or another encoder") from e
        self.root = torch.nn.Parameter(root.float().contiguous())
        self.means = torch.nn.Parameter((means.double() @ root.T).float())

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return -(x.float() @ self.root.T - self.means[:, None]).square().sum(2).T / 2


def build_head(kind: str, channels: int, num_classes: int) -> torch.nn.Module:
    """Build a head for features (B, C, S, S).

    Args:
        kind: "linear" for a linear layer on the mean over the map, "conv" for the paper's two residual blocks before
            it, or "gaussian" for `Gaussians` of the mean.
        channels: C.
        num_classes: K.
    """
    blocks: list[torch.nn.Module] = []
    if kind == "conv":
        blocks = [ResNetBasicLayer(channels, channels), ResNetBasicLayer(channels, 2 * channels, stride=2)]
        channels *= 2
    pool = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    last: torch.nn.Module = torch.nn.Linear(channels, num_classes)
    if kind == "gaussian":
        last = Gaussians(torch.zeros(num_classes, channels), torch.eye(channels))
    return torch.nn.Sequential(*blocks, *pool, last)


class Features(KnownClasses):
    """An encoder with a classifier head.

    Args:
        encoder: encoder from images to features.
        head: see `build_head`.
        class_names: classes that the head was trained on.

    Attributes:
        batch_size: images per batch: 1, so that no result depends on other images.
        model_kind: kind of the model, as in `RunSpec.model_kind`.
    """

    batch_size: int | str = 1
    model_kind: ClassVar[str] = "features"

    def __init__(self, encoder: Encoder, head: torch.nn.Module, class_names: Sequence[str]) -> None:
        self.encoder, self.head = encoder, head.eval().requires_grad_(False)
        self.class_names = tuple(class_names)

    @classmethod
    def recognizes(cls, files: ModelFiles) -> bool:
        """See `Baseline.recognizes`. Heads are loaded from folders only."""
        return (files.folder / FEATURES).is_file()

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Self:
        """Load a folder that `save` wrote, and the encoder that it names.

        The dtype "auto" is the one in which the head was trained.

        Raises:
            InputError: a file cannot be used, or the head was trained with another encoder or in another dtype.
        """
        folder = Path(source)
        try:
            about = json.loads((folder / FEATURES).read_text("utf-8"))
            head = build_head(about["head"], about["channels"], len(about["class_names"]))
            head.load_state_dict(load_file(folder / "head.safetensors"))
            check_floating(folder, stored_dtypes([folder / "head.safetensors"]), [head])
            model, known, kind = about["model"], about["fingerprint"], about["encoder"]
            if kind not in ENCODERS:
                raise ValueError(f"encoder {kind!r} is not one of {', '.join(ENCODERS)}")
            own_dtype = about["dtype"]
        except InputError:
            raise
        except FAULTS as e:
            raise InputError(f"{folder} cannot be used as a head on features: {one_line(e)}") from e
        encoder = load_encoder(model, kind, device=device, dtype=own_dtype if dtype == "auto" else dtype)
        if str(encoder.dtype) != f"torch.{own_dtype}":
            raise InputError(f"{folder} was trained on what {model} gives in {own_dtype}: choose that dtype, or auto")
        if encoder.fingerprint() != known:
            raise InputError(f"{model} is another model than that for which {folder} was trained")
        return cls(encoder, head.to(encoder.device), about["class_names"])

    def save(self, folder: Path, model: str, kind: str, channels: int) -> None:
        """Save the head and the name, fingerprint and dtype of its encoder."""
        about = {
            "model": model, "encoder": self.encoder.kind, "fingerprint": self.encoder.fingerprint(), "head": kind,
            "channels": channels, "class_names": self.class_names,
            "dtype": str(self.encoder.dtype).removeprefix("torch."),
        }  # fmt: skip
        save_file(self.head.state_dict(), folder / "head.safetensors")
        write_durably(folder / FEATURES, json.dumps(about, indent=2) + "\n")

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the encoder's weights and computations."""
        return self.encoder.dtype

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the encoder's input; 0 if the size of each image is kept."""
        return self.encoder.image_size

    def fingerprint(self) -> str:
        """Return a hash of the weights; see `Denoiser.fingerprint`."""
        return fingerprint([*self.encoder.modules(), self.head])

    @torch.no_grad()
    def logits(self, image: Image) -> Tensor:
        """Return the logits of all classes, (K,), float32, for an RGB image."""
        found: Tensor = self.head(self.encoder([image]))[0]
        return found
