"""A head on features of images: of the middle of a diffusion model, or of any encoder.

Shape legend: B images, C channels, S edge of the features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

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
from .encoders import ENCODERS, Encoder, load_encoder
from .hub import FEATURES, KnownClasses

HEADS = ("linear", "conv")
"""That can be trained."""


class Gaussians(torch.nn.Module):
    """Half the negative squared Mahalanobis distances (B, K) of features (B, C) from the means of the classes.

    Args:
        means: (K, C).
        covariance: of all classes, (C, C).

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
    """Reads features (B, C, S, S): "linear", of their mean; "conv", the paper's two residual blocks before it; or
    "gaussian", Gaussians of their mean.
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
    """An encoder with a head.

    Args:
        encoder: of images.
        head: see `build_head`.
        class_names: those that the head was trained with.

    Attributes:
        batch_size: images that are classified at once.
        model_kind: kind of the model, as in `RunSpec.model_kind`.
    """

    batch_size: int | str = 1
    model_kind: ClassVar[str] = "features"

    def __init__(self, encoder: Encoder, head: torch.nn.Module, class_names: Sequence[str]) -> None:
        self.encoder, self.head = encoder, head.eval().requires_grad_(False)
        self.class_names = tuple(class_names)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Features:
        """Load a folder that `save` wrote, and the encoder that it names.

        Where the dtype is "auto", it is that in which the head met the encoder.

        Raises:
            InputError: a file cannot be used; the encoder is another one than the head was trained for, or in another
                dtype.
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
        """Head, and what is needed to find its encoder again."""
        about = {
            "model": model, "encoder": self.encoder.kind, "fingerprint": self.encoder.fingerprint(), "head": kind,
            "channels": channels, "class_names": self.class_names,
            "dtype": str(self.encoder.dtype).removeprefix("torch."),
        }  # fmt: skip
        save_file(self.head.state_dict(), folder / "head.safetensors")
        write_durably(folder / FEATURES, json.dumps(about, indent=2) + "\n")

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in."""
        return self.encoder.dtype

    @property
    def image_size(self) -> int:
        """Edge of the images that the encoder sees; 0 where that is left to each image."""
        return self.encoder.image_size

    def fingerprint(self) -> str:
        """Tells models apart; see `Denoiser.fingerprint`."""
        return fingerprint([*self.encoder.modules(), self.head])

    @torch.no_grad()
    def logits(self, image: Image) -> Tensor:
        """Of all classes, (K,), float32, for an RGB image."""
        found: Tensor = self.head(self.encoder([image]))[0]
        return found
