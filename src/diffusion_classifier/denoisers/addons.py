"""LoRA weights and learned words (textual inversion) on top of a pipeline, as diffusers itself adds them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.loaders.textual_inversion import load_textual_inversion_state_dicts
from diffusers.utils import is_peft_available
from safetensors import SafetensorError
from torch import Tensor

from ..devices import one_line
from ..exceptions import InputError
from .base import without_advice

_FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


def add_loras(pipeline: Any, sources: Iterable[str | Path]) -> None:
    """Fold LoRA weights into the networks that they were made for, so that predictions cost what they did.

    Args:
        pipeline: of diffusers.
        sources: files, folders or hub ids; with a scale as in "style.safetensors@0.8", else 1.

    Raises:
        InputError: peft is missing, the pipeline takes none, a source cannot be read or holds nothing for it.
    """
    for source in sources:
        path, scale = with_scale(str(source))
        need_peft()
        if not hasattr(pipeline, "load_lora_weights"):
            raise InputError(f"{path}: a {type(pipeline).__name__} takes no LoRA weights")
        try:
            with without_advice():  # on networks for which it holds none
                place = _place(path, "pretrained_model_name_or_path_or_dict")
                pipeline.load_lora_weights(**place, use_safetensors=True)
            adapted = pipeline.get_list_adapters()
            if adapted:
                pipeline.fuse_lora(components=list(adapted), lora_scale=scale)
                pipeline.unload_lora_weights()
        except _FAULTS as e:
            raise InputError(f"{path} cannot be added as LoRA weights: {one_line(e)}") from e
        if not adapted:
            raise InputError(f"{path} holds no LoRA weights for a {type(pipeline).__name__}")


def add_words(pipeline: Any, sources: Iterable[str | Path]) -> None:
    """Teach the tokenizers and text encoders words that were learned by textual inversion.

    Args:
        pipeline: of diffusers.
        sources: files, folders or hub ids, with the word as in "<toy>=toy.safetensors" unless the file names it.

    Raises:
        InputError: the pipeline takes none, a source cannot be read or does not fit, or the word is known already.
    """
    for source in sources:
        word, equals, path = str(source).partition("=")
        if not equals:
            word, path = "", str(source)
        if not isinstance(pipeline, TextualInversionLoaderMixin):
            raise InputError(f"{path}: a {type(pipeline).__name__} takes no learned words")
        place = _place(path, "source")
        try:
            (state,) = load_textual_inversion_state_dicts([place.pop("source")], use_safetensors=True, **place)
            for part, vectors in _by_encoder(state).items():
                named: dict[str, Tensor] | Tensor = vectors
                if word or set(vectors) <= {"emb_params", ""}:  # these files do not say their word
                    (named,) = vectors.values()
                    word = word or Path(path).stem
                encoder = {"text_encoder": getattr(pipeline, f"text_encoder{part}")}
                pipeline.load_textual_inversion(
                    named, token=word or None, tokenizer=getattr(pipeline, f"tokenizer{part}"), **encoder
                )
        except _FAULTS as e:
            raise InputError(f"{path} cannot be added as a learned word: {one_line(e)}") from e


def _by_encoder(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Suffix of the encoder → its vectors: those of Stable Diffusion XL hold some for both."""
    if set(state) == {"clip_l", "clip_g"}:
        return {"": {"": state["clip_l"]}, "_2": {"": state["clip_g"]}}
    return {"": state}


def need_peft() -> None:
    """Complain if LoRA weights cannot be had.

    Raises:
        InputError: peft is missing.
    """
    if not is_peft_available():
        raise InputError("LoRA weights need peft, which is missing: pip install 'diffusion-classifier[lora]'")


def with_scale(source: str) -> tuple[str, float]:
    """Path and scale of "style.safetensors@0.8"; the scale is 1 where there is none."""
    path, at, scale = source.rpartition("@")
    if not at or Path(source).exists():
        return source, 1.0
    try:
        value = float(scale)
    except ValueError:
        return source, 1.0
    if not math.isfinite(value):
        raise InputError(f"the scale of LoRA weights must be finite; got {source!r}")
    return path, value


def _place(path: str, name: str) -> dict[str, str]:
    """A file as its folder and name, which is how diffusers wants it; anything else as it is."""
    if not Path(path).exists() and path.count("/") != 1:  # else diffusers would ask the hub for it
        raise InputError(f"there is no file or folder {path!r}, and the id of a model on the hub is as owner/name")
    if not Path(path).is_file():
        return {name: path}
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path} is no safetensors file, and others are not loaded, since unpickling can run code")
    return {name: str(Path(path).parent), "weight_name": Path(path).name}
