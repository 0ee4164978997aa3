"""From a folder or hub id to a denoiser."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from transformers.utils import logging as transformers_logging

from ..data.prompts import words_of
from ..diffusion.timestep_weights import read_weights
from ..errors import InputError
from .addons import add_loras, add_words
from .base import TIMES, Denoiser, ModelDefaults, without_advice
from .class_conditional import ClassConditional
from .class_lora import add_class_loras
from .devices import one_line, resolve_device, resolve_dtype
from .families.late import LateConditionedPipeline
from .families.registry import FAMILIES, why_unsupported
from .networks import FAULTS, OPTIONS, check_files, load_network, read_json
from .single_file import check_file, load_single_file, usual_config
from .weight_files import missing_library

SETTINGS_FILE = "diffusion_classifier.json"
"""Beside model_index.json: class names, defaults and what else diffusers has no place for."""

_UNUSED = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "watermarker": None,
    "requires_safety_checker": False,
    "add_watermarker": False,
}
"""Arguments of `from_pretrained` that keep the components away which only sampling needs."""


def bundled_models() -> dict[str, Path]:
    """Name → folder of the models that the package carries."""
    zoo = Path(str(resources.files("diffusion_classifier"))) / "zoo"
    return {path.parent.name: path.parent for path in sorted(zoo.glob("*/model_index.json"))}


def located(source: str | Path) -> Path:
    """Folder of a bundled model, or of what such a folder holds, as "scenes/contrastive"; else the path itself."""
    name, _, inner = str(source).partition("/")
    folder = bundled_models().get(name, Path(source))
    if not inner:
        return folder
    return folder / inner if (folder / inner).exists() and not Path(source).exists() else Path(source)


def reads_text(source: str | Path) -> bool:
    """Whether a model takes prompts, and not classes, by its model_index.json alone.

    Raises:
        InputError: nothing there, or a pipeline of an unknown kind.
    """
    folder = located(source)
    if folder.is_file():
        return True  # a checkpoint of one file is of a text-to-image model
    index = folder / "model_index.json" if folder.exists() else Path(_download_index(str(source)))
    return not issubclass(FAMILIES[_pipeline_class(read_json(index), source).__name__], ClassConditional)


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
    """The denoiser of a bundled model, a folder that a diffusers pipeline was saved to, a hub id, or a checkpoint.

    Weights are read from safetensors only, and no code that comes with a model is run.

    Args:
        source: "fashion", a path, or a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5".
        device: "auto", "cpu", "cuda", "cuda:1" …
        dtype: of the network: "auto", "float32", "bfloat16" or "float16". T5, Gemma and Qwen, which read prompts, have
            it too; autoencoders and CLIP stay in float32, so that latents do not depend on it.
        image_size: edge in pixels of the images that a text-to-image model is given, where it is not to be what the
            model was trained for: a Flux of 512 pixels takes a quarter of the time.
        without: components to leave out, such as "text_encoder_3" and "tokenizer_3", the T5 of Stable Diffusion 3.
        variant: of the weights, such as "fp16", where a folder holds several or no other; components that have none of
            it are loaded as they are.
        loras: LoRA weights to add; see `addons.add_loras`.
        words: learned words (textual inversion) to add; see `addons.add_words`.
        config: of a checkpoint of one file: folder or hub id of a pipeline with the same configs; the one that its
            tensors look like, from the hub, if None.

    Raises:
        InputError: nothing there, a pipeline of an unknown kind, no safetensors, or a file that cannot be used.
    """
    device = resolve_device(str(device))
    dtype = resolve_dtype(dtype, device)
    folder = located(source)
    file = folder if folder.is_file() else None
    if file is not None:
        check_file(file)
        config = str(config) if config is not None else usual_config(file)
        folder = Path(config) if Path(config).exists() else Path(_download_index(config)).parent
    elif config is not None:
        raise InputError(f"a config is for a checkpoint of one file, and {source} is none")
    elif not folder.exists():
        folder = _download(str(source), without, variant)
    if file is not None and variant is not None:
        raise InputError(f"{source} is one file, of which there are no variants; {variant!r} was asked for")
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder} is not a folder that a diffusers pipeline was saved to: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    pipeline_class = _pipeline_class(index, source)
    absent = _absent(index, pipeline_class, source, without)
    # Modules are made with random weights before they are given their own.
    with quiet(), torch.random.fork_rng(range(torch.cuda.device_count())):
        if file is not None:
            for name in _components(index):
                if any((folder / name).glob("*.bin")):
                    raise InputError(f"{folder / name} has weights that are not in *.safetensors, which are not loaded")
            pipeline = load_single_file(file, str(config), pipeline_class, _components(index), dtype, absent)
        else:
            pipeline = _load_folder(folder, source, index, pipeline_class, dtype, absent, variant)
        family = FAMILIES[pipeline_class.__name__]
        if not issubclass(family, ClassConditional):
            add_loras(pipeline, loras)
        learned = add_words(pipeline, words)
    settings = read_json(folder / SETTINGS_FILE) if file is None and (folder / SETTINGS_FILE).is_file() else {}
    # DiTPipeline keeps only a part of id2label.
    settings = {"id2label": index.get("id2label"), **settings}
    if image_size is not None:
        settings["image_size"] = image_size
    defaults = ModelDefaults.read(settings.get("defaults", {}), folder / SETTINGS_FILE)
    try:
        denoiser: Denoiser = family.from_pipeline(pipeline, settings)
    except InputError:
        raise
    except FAULTS as e:
        raise InputError(
            f"{source} cannot be used, because a value in its configs does not fit ({type(e).__name__}: {one_line(e)})"
        ) from e
    if isinstance(denoiser, ClassConditional):
        add_class_loras(denoiser, loras)
    if image_size not in (None, denoiser.image_size):
        raise InputError(f"{source} takes images of {denoiser.image_size} pixels only; {image_size} was asked for")
    denoiser.defaults = defaults
    denoiser.licence = settings.get("licence")
    times = settings.get("times", denoiser.times)
    if isinstance(times, str) and times not in TIMES:
        raise InputError(f"{folder / SETTINGS_FILE}: times {times!r} are not one of {', '.join(TIMES)}")
    denoiser.times = times if isinstance(times, str) else read_weights(times)
    denoiser.words = settings.get("words")
    listed = denoiser.words is None or isinstance(denoiser.words, list)
    if not listed or not all(isinstance(word, str) for word in denoiser.words or ()):
        raise InputError(f"{folder / SETTINGS_FILE}: words cannot be {denoiser.words!r}")
    if denoiser.words is not None:
        denoiser.words = [*denoiser.words, *set[str]().union(*map(words_of, learned))]
    return denoiser.to(device, dtype)


def _absent(
    index: Mapping[str, Any], pipeline_class: Any, source: str | Path, without: Collection[str]
) -> dict[str, Any]:
    """Arguments for what is left out, is only for sampling, or was never there."""
    parameters = inspect.signature(pipeline_class).parameters
    readers = [name for name in parameters if name.startswith(("text_encoder", "tokenizer"))]
    for name in without:
        if name not in readers:
            known = ", ".join(readers) or "none"
            raise InputError(f"{name!r} cannot be left out of {source}: only what reads prompts can, which is {known}")
    # A pipeline without one of its text encoders is saved without any word of it.
    missing = {name: None for name in readers if name in without or name not in _components(index)}
    return missing | {name: value for name, value in _UNUSED.items() if name in parameters}


def _load_folder(
    folder: Path,
    source: str | Path,
    index: Mapping[str, Any],
    pipeline_class: Any,
    dtype: torch.dtype,
    absent: dict[str, Any],
    variant: str | None,
) -> Any:
    components = {name: part for name, part in _components(index).items() if name not in absent}
    for name in components:
        check_files(folder / name)
    variants = {name: _variant(folder / name, variant) for name in components}
    if variant is not None and variant not in variants.values():
        raise InputError(f"{source} has no weights of the variant {variant!r}")
    try:
        networks = {
            name: load_network(folder / name, library, class_name, _dtype(class_name, dtype), variants[name])
            for name, (library, class_name) in components.items()
            if (folder / name / "config.json").is_file()
        }
        return pipeline_class.from_pretrained(folder, **networks, **absent, **OPTIONS)
    except ImportError as e:
        raise InputError(f"{source} cannot be loaded: {missing_library(e)}") from e
    except InputError:
        raise
    except FAULTS as e:
        raise InputError(f"{source} cannot be loaded: {one_line(e)}") from e


def _download(source: str, without: Collection[str], variant: str | None) -> Path:
    """The folder of a hub model in the local cache, with no more than is needed of it."""
    names = ", ".join(bundled_models()) or "none"
    nothing = f"no model {source!r}: it is neither a folder here nor a bundled model ({names})"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise InputError(nothing)
    index = read_json(Path(_download_index(source, nothing)))
    pipeline_class = _pipeline_class(index, source)
    absent = _absent(index, pipeline_class, source, without)
    try:
        folder = pipeline_class.download(source, use_safetensors=True, variant=variant, **absent)
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
        pass  # most have none
    except LocalEntryNotFoundError:
        if try_to_load_from_cache(source, SETTINGS_FILE) is None:  # nor is it known that there is none
            warnings.warn(
                f"whether {source} has a {SETTINGS_FILE}, with class names and defaults, cannot be looked up "
                "without a network; going on as if it had none",
                stacklevel=2,
            )


def _pipeline_class(index: Mapping[str, Any], source: str | Path) -> Any:
    """The class that a model index names, provided that nothing in the index asks for code of the model's own."""
    kind = index.get("_class_name")
    if isinstance(kind, list):
        raise InputError(f"{source} needs a pipeline of its own, {kind}: code that comes with a model is not run")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{source}: pipelines of class {kind} are not supported, since {why_unsupported(str(kind))}; known are "
            f"{', '.join(FAMILIES)}"
        )
    for name, (library, class_name) in _components(index).items():
        # A library that diffusers does not know is looked for in the model's folder; Auto classes may look there too.
        if library not in ("diffusers", "transformers") or re.match("Auto[A-Z]", str(class_name)):
            raise InputError(
                f"{source} needs {library}.{class_name} for its {name}: code that comes with a model is not run"
            )
    with without_advice():  # the import tells what image processors, not used here, would need
        return LateConditionedPipeline if kind == LateConditionedPipeline.__name__ else getattr(diffusers, kind)


def _components(index: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name → library and class of the components that are loaded."""
    return {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2 and v[0] and k not in _UNUSED}


def _dtype(class_name: str, dtype: torch.dtype) -> torch.dtype:
    """float32 for autoencoders, and for encoders of text that are small beside the network that predicts."""
    if class_name.startswith(("Autoencoder", "CLIP")):
        return torch.float32
    # Language models overflow in float16.
    return torch.bfloat16 if dtype is torch.float16 and class_name.startswith(("Gemma", "Qwen")) else dtype


def _variant(component: Path, variant: str | None) -> str | None:
    """The variant to load a component's weights of: that which was asked for, where it has any of it."""
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
    """Without progress bars and without advice on sampling."""
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
