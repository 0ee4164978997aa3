"""Contrastive models of the library open_clip that transformers lacks, such as CLIP with a ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from PIL.Image import Image
from torch import Tensor

from ..data.prompts import check_prompt_length
from ..denoisers.devices import one_line, resolve_device, resolve_dtype
from ..denoisers.load import located
from ..denoisers.networks import FAULTS
from ..denoisers.weight_files import check_floating, missing_library, stored_dtypes
from ..errors import InputError
from .contrastive import Contrastive, unit
from .pretrained import ModelFiles

CONFIG = "open_clip_config.json"
"""File by which a model of open_clip is recognized."""
WEIGHTS = "open_clip_model.safetensors"
_FILES = [CONFIG, WEIGHTS, "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model"]


class OpenClip(Contrastive):
    """A model of open_clip.

    Args:
        model: network with `encode_image`, `encode_text`, `logit_scale` and, for SigLIP, `logit_bias`.
        tokenizer: tokenizer of the model.
        transform: function from an image to a tensor.
    """

    def __init__(self, model: Any, tokenizer: Any, transform: Any) -> None:
        self.model, self.tokenizer, self.image_processor = model.eval().requires_grad_(False), tokenizer, transform
        self.max_tokens = tokenizer.context_length

    @classmethod
    def recognizes(cls, files: ModelFiles) -> bool:
        """See `Baseline.recognizes`. A model that transformers can load is left to `Contrastive`."""
        return not Contrastive.recognizes(files) and files.find(CONFIG) is not None

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Self:
        """Load a folder with `open_clip_config.json`, or a hub id; see `Contrastive.from_pretrained`."""
        try:
            import open_clip
        except ImportError as e:
            raise InputError(f"{source} needs open_clip: pip install 'diffusion-classifier[open-clip]'") from e
        device = resolve_device(str(device))
        precision = torch.float32 if dtype == "auto" else resolve_dtype(dtype, device)
        try:
            folder = located(source)
            if not folder.is_dir():
                folder = Path(snapshot_download(str(source), allow_patterns=_FILES))
            if not (folder / WEIGHTS).is_file():
                raise InputError(f"{source} has no {WEIGHTS}; other formats are not loaded, since they can run code")
            name = f"local-dir:{folder}"
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                model, transform = open_clip.create_model_from_pretrained(name)
            check_floating(source, stored_dtypes([folder / WEIGHTS]), [model])
            tokenizer = open_clip.get_tokenizer(name)
        except InputError:
            raise
        except ImportError as e:
            raise InputError(f"{source} cannot be loaded: {missing_library(e)}") from e
        except FAULTS as e:
            raise InputError(f"{source} cannot be loaded: {one_line(e)}") from e
        return cls(model.to(device, precision), tokenizer, transform)

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the network's input."""
        size = self.model.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (T, L).

        Raises:
            InputError: a text is too long. No text is truncated.
        """
        padding = self.tokenizer([""])[0, -1]
        tokens: Tensor = self.tokenizer(list(texts))
        # The tokenizer truncates silently. A longer context length shows whether it did.
        roomy = self.tokenizer(list(texts), context_length=4 * self.max_tokens)
        for text, own, whole in zip(texts, tokens, roomy, strict=True):
            length = int((whole != padding).nonzero().max()) + 1
            cut = not torch.equal(own, whole[: self.max_tokens])
            check_prompt_length(text, max(length, self.max_tokens + cut), self.max_tokens)
        return tokens

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """See `Contrastive.embeddings`."""
        return unit(self.model.encode_text(self.tokens(texts).to(self.device)))

    @torch.inference_mode()
    def encode_image(self, image: Image) -> Tensor:
        """See `Contrastive.encode_image`."""
        pixels = self.image_processor(image)[None].to(self.device, self.dtype)
        return unit(self.model.encode_image(pixels))[0]
