"""Image classifiers of transformers, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL.Image import Image
from torch import Tensor

from .base import HubNetwork, KnownClasses
from .pretrained import ModelFiles, as_in_training, load_hub_model


class Supervised(HubNetwork, KnownClasses):
    """An image classifier.

    Args:
        model: network with `config.id2label`, which returns `logits`.
        image_processor: image processor of the model.

    Attributes:
        batch_size: images per batch: 1, so that no result depends on other images.
        model_kind: kind of the model, as in `RunSpec.model_kind`.
        class_names: classes that the model was trained on.
    """

    batch_size: int | str = 1
    model_kind: ClassVar[str] = "supervised"

    def __init__(self, model: Any, image_processor: Any) -> None:
        self.model, self.image_processor = model.eval().requires_grad_(False), image_processor
        self.class_names = tuple(name for _, name in sorted(model.config.id2label.items()))

    @classmethod
    def recognizes(cls, files: ModelFiles) -> bool:
        """See `Baseline.recognizes`. An image classifier with the backbone of CLIP is one, too."""
        return str((files.config.get("architectures") or [""])[0]).endswith("ForImageClassification")

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Self:
        """Load a folder that transformers saved, or a hub id; see `load_hub_model`."""
        model, images, _ = load_hub_model(source, "AutoModelForImageClassification", device, dtype)
        return cls(model, images)

    @torch.inference_mode()
    def logits(self, image: Image) -> Tensor:
        """Return the logits of all classes, (K,), float32, for an RGB image."""
        inputs = self.image_processor(images=as_in_training(self.model, image), return_tensors="pt").to(
            self.device, self.dtype
        )
        logits: Tensor = self.model(**inputs).logits[0].float()
        return logits
