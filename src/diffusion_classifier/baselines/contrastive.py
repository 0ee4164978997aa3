"""Contrastive models of images and texts, such as CLIP and SigLIP.

Shape legend: T texts, D dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.prompts import check_prompt_length, fill_template
from ..denoisers.base import without_advice
from .base import HubNetwork, Logits
from .pretrained import ModelFiles, load_hub_model

MODEL_TYPES = ("clip", "siglip", "siglip2")
"""`model_type` of the supported contrastive models of transformers."""

_TEXTS = 64
"""Texts per batch."""


class Contrastive(HubNetwork):
    """A model that embeds images and texts in one space.

    Args:
        model: network with `get_image_features`, `get_text_features`, `logit_scale` and, for SigLIP, `logit_bias`.
        tokenizer: tokenizer of the model.
        image_processor: image processor of the model.

    Attributes:
        batch_size: images per batch: 1, so that no result depends on other images.
        model_kind: kind of the model, as in `RunSpec.model_kind`.
        class_names: None, because any text is accepted.
    """

    batch_size: int | str = 1
    model_kind: ClassVar[str] = "contrastive"
    class_names: ClassVar[None] = None

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.max_tokens = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    @classmethod
    def recognizes(cls, files: ModelFiles) -> bool:
        """See `Baseline.recognizes`."""
        return files.config.get("model_type") in MODEL_TYPES

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Self:
        """Load a folder that transformers saved, or a hub id.

        Args:
            source: the folder or id; or, for a bundled model, "scenes/contrastive".
            device: as in `load_denoiser`.
            dtype: dtype of the networks; float32 if "auto".

        Raises:
            InputError: the model is missing, has no safetensors, or has a file that cannot be used.
        """
        model, images, tokenizer = load_hub_model(source, "AutoModel", device, dtype, with_tokenizer=True)
        return cls(model, tokenizer, images)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the network's input; 0 if the size of each image is kept."""
        return int(getattr(self.model.config.vision_config, "image_size", 0))

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings of length 1, (T, D), float32.

        Raises:
            InputError: a text is too long. No text is truncated.
        """
        return torch.cat([self.embeddings(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)])

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of one batch of texts; see `encode_texts`."""
        with without_advice():
            for text, ids in zip(texts, self.tokenizer(list(texts)).input_ids, strict=True):
                check_prompt_length(text, len(ids), self.max_tokens)
        # SigLIP was trained on padded texts; CLIP masks the padding.
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=self.max_tokens, return_tensors="pt").to(
            self.device
        )
        if self.model.config.model_type.startswith("siglip"):
            tokens.pop("attention_mask", None)  # it was trained without a mask
        return unit(self.model.get_text_features(**tokens))

    @torch.inference_mode()
    def encode_image(self, image: Image) -> Tensor:
        """Return the embedding of an RGB image, of length 1, (D,), float32."""
        inputs = self.image_processor(images=image, return_tensors="pt").to(self.device, self.dtype)
        return unit(self.model.get_image_features(**inputs))[0]

    def logits(self, image: Tensor, texts: Tensor) -> Tensor:
        """Return the logits (T,), float32, of texts (T, D) for an image (D,).

        They are comparable across texts and across images.
        """
        logits: Tensor = texts @ image * self.model.logit_scale.float().exp()
        bias = getattr(self.model, "logit_bias", None)
        return logits if bias is None else logits + bias.float()

    def logits_for(self, classes: Sequence[str] | Sequence[int], templates: Sequence[str] = ()) -> Logits:
        """See `Baseline.logits_for`. The embeddings of several templates are averaged."""
        names = [str(c) for c in classes]
        each = [self.encode_texts(fill_template(template, names)) for template in templates]
        texts = unit(torch.stack(each).mean(0)) if each else self.encode_texts(names)
        return lambda image, among: self.logits(self.encode_image(image), texts[list(among)])


def unit(features: Any) -> Tensor:
    """Return features of length 1, float32. Transformers 5 wraps them in an output object; transformers 4 does not."""
    values: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(values.float(), dim=-1)
