"""Contrastive models of images and texts, such as CLIP and SigLIP.

Shape legend: T texts, D dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.prompts import check_prompt_length, fill_template
from ..denoisers.base import fingerprint, without_advice
from .hub import Scorer, load_hub_model, of_open_clip

_TEXTS = 64
"""That are read at once."""


class Contrastive:
    """A model that embeds images and texts in one space.

    Args:
        model: with `get_image_features`, `get_text_features`, `logit_scale` and, as SigLIP, `logit_bias`.
        tokenizer: of its texts.
        image_processor: of its images.

    Attributes:
        batch_size: images that are embedded at once: no bit depends on what others are there.
        strategy: what runs have in place of one.
        class_names: none: any text will do.
    """

    batch_size: int | str = 1
    strategy: ClassVar[str] = "contrastive"
    class_names: ClassVar[None] = None

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.max_tokens = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Contrastive:
        """Load a folder that transformers saved to, or a hub id; one of open_clip by that library.

        Args:
            source: the folder or id; or, of a bundled model, "scenes/contrastive".
            device: as in `load_denoiser`.
            dtype: of the networks; float32 if "auto".

        Raises:
            InputError: nothing there, no safetensors, or a file that cannot be used.
        """
        if of_open_clip(source):
            from .open_clip import OpenClip

            return OpenClip.from_pretrained(source, device=device, dtype=dtype)
        model, images, tokenizer = load_hub_model(source, "AutoModel", device, dtype, with_tokenizer=True)
        return cls(model, tokenizer, images)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.model.logit_scale.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """What they compute in."""
        return self.model.logit_scale.dtype  # type: ignore[no-any-return]

    @property
    def image_size(self) -> int:
        """Edge of the images that the network sees; 0 where that is left to each image."""
        return int(getattr(self.model.config.vision_config, "image_size", 0))

    def fingerprint(self) -> str:
        """Tells models apart; see `Denoiser.fingerprint`."""
        return fingerprint([self.model])

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length 1, (T, D), float32.

        Raises:
            InputError: a text is too long. None is ever cut short.
        """
        return torch.cat([self.embeddings(texts[start : start + _TEXTS]) for start in range(0, len(texts), _TEXTS)])

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """As `encode_texts`, of few, all at once."""
        with without_advice():
            for text, ids in zip(texts, self.tokenizer(list(texts)).input_ids, strict=True):
                check_prompt_length(text, len(ids), self.max_tokens)
        # SigLIP was trained with texts that are filled up; CLIP does not see what they are filled with.
        tokens = self.tokenizer(list(texts), padding="max_length", max_length=self.max_tokens, return_tensors="pt").to(
            self.device
        )
        if self.model.config.model_type.startswith("siglip"):
            tokens.pop("attention_mask", None)  # in training it saw what texts are filled with
        return unit(self.model.get_text_features(**tokens))

    @torch.inference_mode()
    def encode_image(self, image: Image) -> Tensor:
        """Embedding of length 1, (D,), float32, of an RGB image."""
        inputs = self.image_processor(images=image, return_tensors="pt").to(self.device, self.dtype)
        return unit(self.model.get_image_features(**inputs))[0]

    def logits(self, image: Tensor, texts: Tensor) -> Tensor:
        """How well texts (T, D) fit an image (D,), (T,), float32: comparable between texts and between images."""
        logits: Tensor = texts @ image * self.model.logit_scale.float().exp()
        bias = getattr(self.model, "logit_bias", None)
        return logits if bias is None else logits + bias.float()

    def scorer(self, classes: Sequence[str] | Sequence[int], templates: Sequence[str] = ()) -> Scorer:
        """See `hub.Baseline`; embeddings of several templates are averaged."""
        names = [str(c) for c in classes]
        each = [self.encode_texts(fill_template(template, names)) for template in templates]
        texts = unit(torch.stack(each).mean(0)) if each else self.encode_texts(names)
        return lambda image, among: self.logits(self.encode_image(image), texts[list(among)])


def unit(features: Any) -> Tensor:
    """Of length 1, float32, of what transformers 5 wraps and transformers 4 does not."""
    values: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(values.float(), dim=-1)
