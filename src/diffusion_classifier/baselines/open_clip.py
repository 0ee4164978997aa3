"""Contrastive models of the library open_clip, for those that transformers has not, such as CLIP with a ResNet-50."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL.Image import Image
from torch import Tensor

from ..data.prompts import check_prompt_length
from ..denoisers.devices import one_line, resolve_device, resolve_dtype
from ..denoisers.load import located
from ..denoisers.networks import FAULTS
from ..denoisers.weight_files import missing_library, refuse_integers, stored_dtypes
from ..errors import InputError
from .contrastive import Contrastive, unit
from .hub import OPEN_CLIP

WEIGHTS = "open_clip_model.safetensors"
_FILES = [OPEN_CLIP, WEIGHTS, "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model"]


class OpenClip(Contrastive):
    """A model of open_clip.

    Args:
        model: with `encode_image`, `encode_text`, `logit_scale` and, as SigLIP, `logit_bias`.
        tokenizer: of its texts.
        transform: makes a tensor of an image.
    """

    def __init__(self, model: Any, tokenizer: Any, transform: Any) -> None:
        self.model, self.tokenizer, self.image_processor = model.eval().requires_grad_(False), tokenizer, transform
        self.max_tokens = tokenizer.context_length

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> OpenClip:
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
            refuse_integers(source, stored_dtypes([folder / WEIGHTS]), [model])
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
        """Edge of the images that the network sees."""
        size = self.model.visual.image_size
        return int(size if isinstance(size, int) else size[0])

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Of texts, (T, L); none is cut short.

        Raises:
            InputError: a text is too long.
        """
        padding = self.tokenizer([""])[0, -1]
        tokens: Tensor = self.tokenizer(list(texts))
        # The tokenizer cuts: what it makes of a text where there is room says whether it did.
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
