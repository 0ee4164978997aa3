"""Load a denoiser from a bundled model, a folder, a hub id, or a single-file checkpoint."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from transformers.utils import logging as transformers_logging

from ..data.prompts import words_of
from ..errors import InputError
from .addons import add_loras, add_words
from .base import Denoiser
from .class_conditional import ClassConditional
from .class_lora import add_class_loras
from .devices import one_line, resolve_device, resolve_dtype
from .model_index import ModelIndex
from .model_settings import SETTINGS_FILE, ModelSettings
from .networks import FAULTS, OPTIONS, check_files, load_network, read_json
from .single_file import check_file, default_config, load_single_file
from .weight_files import missing_library


def bundled_models() -> dict[str, Path]:
    """Return name → folder of the models in the package."""
    zoo = Path(str(resources.files("diffusion_classifier"))) / "zoo"
    return {path.parent.name: path.parent for path in sorted(zoo.glob("*/model_index.json"))}


def located(source: str | Path) -> Path:
    """Return the folder of a bundled model, or of a part of one such as "scenes/contrastive"; else the path itself."""
    name, _, inner = str(source).partition("/")
    folder = bundled_models().get(name, Path(source))
    if not inner:
        return folder
    return folder / inner if (folder / inner).exists() and not Path(source).exists() else Path(source)


def reads_text(source: str | Path) -> bool:
    """Return whether a model is text-to-image, and not class-conditional. Reads no more than its model_index.json.

    Raises:
        InputError: there is no such model, or its pipeline is not supported.
    """
    folder = located(source)
    if folder.is_file():
        return True  # single-file checkpoints are text-to-image models
    index = folder / "model_index.json" if folder.exists() else Path(_download_index(str(source)))
    return not issubclass(ModelIndex.read(read_json(index), source).family, ClassConditional)


def load_denoiser(
    source: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    image_size: int | None = None,
    without: Collection[str] = (),
    variant: str | None = None,
    loras: Iterable[str | Path] = (),
    words: Iterable[str | Path] = (),
    config: str | Path | None = None,
) -> Denoiser:
    """Load a bundled model, a folder that a diffusers pipeline was saved to, a hub id, or a single-file checkpoint.

    Weights are read from safetensors only. Code that comes with a model is never run.

    Args:
        source: "fashion", a path, or a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5".
        device: "auto", "cpu", "cuda", "cuda:1" …
        dtype: dtype of the network and of large text encoders (T5, Gemma, Qwen): "auto", "float32", "bfloat16" or
            "float16". Autoencoders and CLIP stay in float32, so that latents do not depend on the dtype.
        image_size: edge in pixels of the images of a text-to-image model. Default: the size that the model was
            trained for. Smaller images are faster: Flux at 512 pixels takes a quarter of the time.
        without: components to leave out, such as "text_encoder_3" and "tokenizer_3", the T5 of Stable Diffusion 3.
        variant: variant of the weights, such as "fp16", if a folder holds several or no other. Components without
            this variant are loaded as they are.
        loras: LoRA weights to add; see `addons.add_loras`.
        words: textual inversion embeddings to add; see `addons.add_words`.
        config: folder or hub id of a pipeline whose configs fit a single-file checkpoint. Default: the pipeline on
            the hub that the checkpoint's tensors look like.

    Raises:
        InputError: there is no such model, its pipeline is not supported, its weights are not in safetensors, or a
            file cannot be used.
    """
    device = resolve_device(str(device))
    dtype = resolve_dtype(dtype, device)
    folder = located(source)
    file = folder if folder.is_file() else None
    if file is not None:
        check_file(file)
        config = str(config) if config is not None else default_config(file)
        folder = Path(config) if Path(config).exists() else Path(_download_index(config)).parent
    elif config is not None:
        raise InputError(f"a config is for a checkpoint of one file, and {source} is none")
    elif not folder.exists():
        folder = _download(str(source), without, variant)
    if file is not None and variant is not None:
        raise InputError(f"{source} is one file, of which there are no variants; {variant!r} was asked for")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a folder that a diffusers pipeline was saved to: it has no model_index.json")
    index = ModelIndex.read(read_json(folder / "model_index.json"), source)
    absent = index.absent(without)
    # Modules are initialised with random weights before they get their own.
    with quiet(), torch.random.fork_rng(range(torch.cuda.device_count())):
        if file is not None:
            for name in index.components:
                if any((folder / name).glob("*.bin")):
                    raise InputError(f"{folder / name} has weights that are not in *.safetensors, which are not loaded")
            pipeline = load_single_file(file, str(config), index, dtype, absent)
        else:
            pipeline = _load_folder(folder, index, dtype, absent, variant)
        if not issubclass(index.family, ClassConditional):
            add_loras(pipeline, loras)
        learned = add_words(pipeline, words)
    settings = _settings(folder, index, learned, has_file=file is None)
    try:
        wanted = settings if image_size is None else replace(settings, image_size=image_size)
        denoiser = index.family.from_pipeline(pipeline, wanted)
    except InputError:
        raise
    except FAULTS as e:
        raise InputError(
            f"{source} cannot be used, because a value in its configs does not fit ({type(e).__name__}: {one_line(e)})"
        ) from e
    if image_size not in (None, denoiser.image_size):
        raise InputError(f"{source} takes images of {denoiser.image_size} pixels only; {image_size} was asked for")
    if isinstance(denoiser, ClassConditional):
        add_class_loras(denoiser, loras)
    return denoiser.to(device, dtype)


def _settings(folder: Path, index: ModelIndex, learned: Iterable[str], *, has_file: bool) -> ModelSettings:
    """Return the settings of a folder's file and model index; `learned` words extend a closed vocabulary."""
    file = folder / SETTINGS_FILE
    stored = read_json(file) if has_file and file.is_file() else {}
    settings = ModelSettings.read({"id2label": index.id2label, **stored}, file)
    if settings.words is None:
        return settings
    return replace(settings, words=[*settings.words, *set[str]().union(*map(words_of, learned))])


def _load_folder(
    folder: Path, index: ModelIndex, dtype: torch.dtype, absent: dict[str, Any], variant: str | None
) -> Any:
    components = {name: part for name, part in index.components.items() if name not in absent}
    for name in components:
        check_files(folder / name)
    variants = {name: _variant(folder / name, variant) for name in components}
    if variant is not None and variant not in variants.values():
        raise InputError(f"{index.source} has no weights of the variant {variant!r}")
    try:
        networks = {
            name: load_network(
                folder / name, library, class_name, index.family.component_dtype(name, dtype), variants[name]
            )
            for name, (library, class_name) in components.items()
            if (folder / name / "config.json").is_file()
        }
        return index.pipeline.from_pretrained(folder, **networks, **absent, **OPTIONS)
    except ImportError as e:
        raise InputError(f"{index.source} cannot be loaded: {missing_library(e)}") from e
    except InputError:
        raise
    except FAULTS as e:
        raise InputError(f"{index.source} cannot be loaded: {one_line(e)}") from e


def _download(source: str, without: Collection[str], variant: str | None) -> Path:
    """Download the required files of a hub model, and return their folder in the local cache."""
    names = ", ".join(bundled_models()) or "none"
    nothing = f"no model {source!r}: it is neither a folder here nor a bundled model ({names})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise InputError(nothing)
    index = ModelIndex.read(read_json(Path(_download_index(source, nothing))), source)
    absent = index.absent(without)
    try:
        folder = index.pipeline.download(source, use_safetensors=True, variant=variant, **absent)
        _download_settings(source)
    except (OSError, ValueError) as e:
        raise InputError(f"{source} cannot be had from the hub: {one_line(e)}") from e
    return Path(folder)


def _download_index(source: str, nothing: str | None = None) -> str:
    try:
        return str(hf_hub_download(source, "model_index.json"))
    except (OSError, ValueError) as e:
        what = f"{nothing}, and" if nothing else source
        raise InputError(f"{what} cannot be had from the hub: {one_line(e)}") from e


def _download_settings(source: str) -> None:
    try:
        hf_hub_download(source, SETTINGS_FILE)
    except RemoteEntryNotFoundError:
        pass  # most repositories have no settings file
    except LocalEntryNotFoundError:
        if try_to_load_from_cache(source, SETTINGS_FILE) is None:  # the cache does not know that there is none
            warnings.warn(
                f"whether {source} has a {SETTINGS_FILE}, with class names and defaults, cannot be looked up "
                "without a network; going on as if it had none",
                stacklevel=2,
            )


def _variant(component: Path, variant: str | None) -> str | None:
    """Return the variant of a component's weights to load: the requested one if the component has it.

    Raises:
        InputError: the component has other variants only.
    """
    names = [file.name for file in component.glob("*.safetensors")]
    found = {m[1] if (m := re.search(r"\.(\w+)(-\d+-of-\d+)?\.safetensors$", name)) else None for name in names}
    if variant not in found and found and None not in found:
        raise InputError(
            f"{component} has weights of the variant {', '.join(sorted(map(str, found)))} only: ask "
            "for it by the argument variant or the option --variant"
        )
    return variant if variant in found else None


@contextmanager
def quiet() -> Iterator[None]:
    """Turn off progress bars and warnings about sampling."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library in shown:
            library.enable_progress_bar()
