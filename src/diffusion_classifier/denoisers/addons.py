"""Add LoRA weights and textual inversion embeddings to a pipeline, with the loaders of diffusers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionXLLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.utils import is_peft_available
from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module

from ..errors import InputError
from .base import without_advice
from .devices import one_line
from .lora_accounts import check_all_applied, check_finite, layers_of
from .networks import FAULTS
from .trace import Trace
from .weight_files import check_all_used, some

_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./-]+\.safetensors)")


def add_loras(pipeline: Any, sources: Iterable[str | Path]) -> None:
    """Fuse LoRA weights into the networks of a pipeline, so that a prediction costs as much as before.

    Args:
        pipeline: pipeline of diffusers.
        sources: files, folders or hub ids, with an optional scale as in "style.safetensors@0.8". Default scale: 1.

    Raises:
        InputError: peft is missing, the pipeline takes no LoRA weights, a source cannot be read, or only a part of its
            weights would be used.
    """
    for source in sources:
        path, scale = with_scale(str(source))
        check_peft()
        if not hasattr(pipeline, "load_lora_weights"):
            raise InputError(f"{path}: a {type(pipeline).__name__} takes no LoRA weights")
        file = weights_file(path)
        try:
            with without_advice():  # about networks for which the file holds no weights
                tensors = load_file(file)
                layers = layers_of(path, tensors)
                converted = _converted(pipeline, tensors)
                _check_encoders(path, pipeline, converted)
                _check_shapes(path, pipeline, converted)
                pipeline.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
            adapted = pipeline.get_list_adapters()
            if adapted:
                networks = {name: getattr(pipeline, name) for name in adapted}
                with safe_open(file, "pt") as opened:
                    scales = "lora_adapter_metadata" not in (opened.metadata() or {})
                check_all_applied(path, tensors, layers, converted, networks, scales=scales)
                pipeline.fuse_lora(components=list(adapted), lora_scale=scale)
                pipeline.unload_lora_weights()
        except InputError:
            raise
        except FAULTS as e:
            raise InputError(f"{path} cannot be added as LoRA weights: {one_line(e)}") from e
        if not adapted:
            raise InputError(f"{path} holds no LoRA weights for a {type(pipeline).__name__}")


def _converted(pipeline: Any, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, frozenset[str]]]:
    """Return name → (tensor that the pipeline's loader builds from a file, names of its sources in the file)."""
    options = {"unet_config": pipeline.unet.config} if isinstance(pipeline, StableDiffusionXLLoraLoaderMixin) else {}
    with Trace(tensors) as trace:
        state = pipeline.lora_state_dict(dict(tensors), **options)
    state = state[0] if isinstance(state, tuple) else state
    return {name: (tensor, trace.names(tensor)) for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _check_encoders(path: str, pipeline: Any, converted: Mapping[str, Any]) -> None:
    """Raise if LoRA weights are for a text encoder that the pipeline does not have."""
    for part in sorted({name.partition(".")[0] for name in converted}):
        if part.startswith("text_encoder") and getattr(pipeline, part, None) is None:
            names = [name for name in converted if name.startswith(f"{part}.")]
            raise InputError(
                f"{path} holds {len(names)} tensors for {part}, which this {type(pipeline).__name__} does not have "
                f"({some(names)})"
            )


def _check_shapes(path: str, pipeline: Any, converted: Mapping[str, tuple[Tensor, frozenset[str]]]) -> None:
    """Raise if LoRA matrices are for layers that a text encoder lacks, or for layers of another size."""
    for part in sorted({name.partition(".")[0] for name in converted}):
        network = getattr(pipeline, part, None)
        if not isinstance(network, Module):
            continue
        kind = f"the {part} of this {type(pipeline).__name__}"
        modules = dict(network.named_modules())
        # transformers dropped the first part of CLIP's names, which files still have.
        modules |= {f"text_model.{name}": module for name, module in modules.items()}
        layers = {name: name.partition(".lora_")[0].removeprefix(f"{part}.") for name in converted if ".lora_" in name}
        own = {name: layer for name, layer in layers.items() if name.startswith(f"{part}.")}
        if part.startswith("text_encoder"):
            check_all_used(path, {n for name in own if own[name] not in modules for n in converted[name][1]}, kind)
        for name, layer in own.items():
            size = getattr(modules.get(layer), "weight", None)
            end = {".lora_A.weight": 1, ".lora_B.weight": 0}.get(name.removeprefix(f"{part}.{layer}"))
            tensor = converted[name][0]
            if end is None or size is None or size.ndim < 2 or getattr(modules[layer], "groups", 1) > 1:
                continue
            if tensor.shape[end] != size.shape[end]:
                raise InputError(
                    f"{path} was made for another model: {name} has the shape {tuple(tensor.shape)}, and does not fit "
                    f"{kind}, whose weights there have the shape {tuple(size.shape)}"
                )


def add_words(pipeline: Any, sources: Iterable[str | Path]) -> list[str]:
    """Add textual inversion embeddings to the tokenizers and text encoders of a pipeline.

    Args:
        pipeline: pipeline of diffusers.
        sources: files, folders or hub ids, with the word as in "<toy>=toy.safetensors", unless the file names it.

    Returns:
        The words that were added.

    Raises:
        InputError: the pipeline takes no embeddings, a source cannot be read or does not fit, only a part of it would
            be used, or the tokenizer already has the word.
    """
    added = []
    for source in sources:
        word, equals, path = str(source).partition("=")
        if not equals:
            word, path = "", str(source)
        if not isinstance(pipeline, TextualInversionLoaderMixin):
            raise InputError(f"{path}: a {type(pipeline).__name__} takes no learned words")
        file = weights_file(path)
        try:
            state = load_file(file)
            check_finite(path, state)
            for part, (name, vectors) in _by_encoder(path, pipeline, state).items():
                if not word and name in ("emb_params", "", "clip_l", "clip_g"):  # these files do not name their word
                    word = Path(path).stem
                encoder = {"text_encoder": getattr(pipeline, part), "tokenizer": getattr(pipeline, _tokenizer(part))}
                pipeline.load_textual_inversion(vectors, token=word or name, **encoder)
                added.append(word or name)
        except InputError:
            raise
        except FAULTS as e:
            raise InputError(f"{path} cannot be added as a learned word: {one_line(e)}") from e
    return added


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _by_encoder(path: str, pipeline: Any, state: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Return text encoder → the name and the vectors (V, D) that a file holds for it.

    Raises:
        InputError: the file holds more than one word, vectors for an encoder that the pipeline lacks, or vectors for
            only one of its two encoders; or the vectors do not fit.
    """
    encoders = [n for n in ("text_encoder", "text_encoder_2") if "CLIP" in type(getattr(pipeline, n, None)).__name__]
    kind = type(pipeline).__name__
    if len(state) == 2 and set(state) == {"clip_l", "clip_g"}:
        found = {"text_encoder": ("clip_l", state["clip_l"]), "text_encoder_2": ("clip_g", state["clip_g"])}
    elif len(state) == 1:
        found = {"text_encoder": next(iter(state.items()))}
    else:
        raise InputError(f"{path} holds {len(state)} tensors, where a learned word is one ({some(state)})")
    if set(found) != set(encoders):
        needed = " and ".join(encoders) or "none"
        raise InputError(
            f"{path} holds vectors for {' and '.join(found)}; a {kind} with this word needs them for {needed}"
        )
    for part, (name, vectors) in found.items():
        width = getattr(pipeline, part).get_input_embeddings().weight.shape[-1]
        if vectors.ndim not in (1, 2) or not len(vectors) or vectors.shape[-1] != width:
            raise InputError(
                f"{path} cannot be added as a learned word: {name or 'its tensor'} has the shape "
                f"{tuple(vectors.shape)}, where {part} takes vectors of {width} numbers"
            )
    return found


def check_peft() -> None:
    """Raise if LoRA weights cannot be loaded.

    Raises:
        InputError: peft is missing.
    """
    if not is_peft_available():
        raise InputError("LoRA weights need peft, which is missing: pip install 'diffusion-classifier[lora]'")


def with_scale(source: str) -> tuple[str, float]:
    """Split "style.safetensors@0.8" into path and scale. The scale is 1 if there is none."""
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


def weights_file(path: str) -> Path:
    """Return the weight file of a path, a folder, a hub id, or owner/name/file.safetensors on the hub.

    Raises:
        InputError: there is no such file, it is not in safetensors, or a folder holds several.
    """
    place = Path(path)
    if place.is_file():
        if place.suffix != ".safetensors":
            raise InputError(f"{path} is no safetensors file, and others are not loaded, since unpickling can run code")
        return place
    if place.is_dir():
        return place / _only(path, [file.name for file in place.glob("*.safetensors")])
    hub = _HUB_FILE.fullmatch(path)
    if path.count("/") != 1 and not hub:  # do not look it up on the hub
        raise InputError(f"there is no file or folder {path!r}, and the id of a model on the hub is as owner/name")
    try:
        if hub:
            return Path(hf_hub_download(hub[1], hub[2]))
        return Path(hf_hub_download(path, _only(path, [n for n in _hub_files(path) if "/" not in n])))
    except (OSError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{path} cannot be had from the hub: {one_line(e)}") from e


def _hub_files(repository: str) -> list[str]:
    """Return the names of the safetensors files of a repository; without a network, of those in the cache."""
    try:
        names = list_repo_files(repository)
    except OSError:
        folder = Path(snapshot_download(repository, local_files_only=True))
        names = [str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")]
    return [name for name in names if name.endswith(".safetensors")]


def _only(path: str, names: list[str]) -> str:
    if not names:
        raise InputError(f"{path} holds no .safetensors file, and others are not loaded, since unpickling can run code")
    if len(names) > 1:
        raise InputError(f"{path} holds {len(names)} weight files ({some(names, 5)}): name one, as {path}/{min(names)}")
    return names[0]
