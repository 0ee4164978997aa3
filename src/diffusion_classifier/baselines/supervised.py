"""Networks that were trained to classify: any image classifier of transformers, from the hub or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from ..denoisers.base import fingerprint
from .hub import KnownClasses, as_in_training, image_size_of, load_hub_model


class Supervised(KnownClasses):
    """An image classifier.

    Args:
        model: with `config.id2label`; returns `logits`.
        image_processor: of its images.

    Attributes:
        batch_size: images that are classified at once.
        model_kind: kind of the model, as in `RunSpec.model_kind`.
        class_names: those that it was trained with.
    """

    batch_size: int | str = 1
    model_kind: ClassVar[str] = "supervised"

    def __init__(self, model: Any, image_processor: Any) -> None:
        self.model, self.image_processor = model.eval().requires_grad_(False), image_processor
        self.class_names = tuple(name for _, name in sorted(model.config.id2label.items()))

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Supervised:
        """Load a folder that transformers saved to, or a hub id; see `hub.load_hub_model`."""
        model, images, _ = load_hub_model(source, "AutoModelForImageClassification", device, dtype)
        return cls(model, images)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def image_size(self) -> int:
        """Edge of the images that the network sees; 0 where that is left to each image."""
        return image_size_of(self.image_processor)

    def fingerprint(self) -> str:
        """Tells models apart; see `Denoiser.fingerprint`."""
        return fingerprint([self.model])

    @torch.inference_mode()
    def logits(self, image: Image) -> Tensor:
        """Of all classes, (K,), float32, for an RGB image."""
        inputs = self.image_processor(images=as_in_training(self.model, image), return_tensors="pt").to(
            self.device, self.dtype
        )
        logits: Tensor = self.model(**inputs).logits[0].float()
        return logits
