"""Check weight files: which files are read, which tensors no model uses, and which would be read wrongly."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open

from ..errors import InputError
from .devices import one_line

HARMLESS = {
    r"(^|\.)position_ids$": "0, 1, 2, …, which a model computes itself",
    r"(^|\.)num_batches_tracked$": "a counter of training, which inference does not read",
    r"(^|\.)inv_freq$": "frequencies of rotary embeddings, which a model computes from its config",
}
"""Patterns of tensor names that a model may leave unused → reason."""

OTHER_PARTS = {
    "CLIPText": r"^(vision_model\.|visual_projection\.|logit_scale$|text_projection\.)",
    "T5Encoder": r"^lm_head\.weight$",
    "UMT5Encoder": r"^lm_head\.weight$",
    "Gemma": r"^lm_head\.weight$",
    "Qwen": r"^lm_head\.weight$",
}
"""Start of a class name → pattern of tensors of the full model that this part of it does not use."""

LIBRARIES = {
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
    "gguf": "gguf",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "hqq": "hqq",
    "eetq": "eetq",
    "aqlm": "aqlm",
    "vptq": "vptq",
    "quark": "amd-quark",
    "auto-round": "auto-round",
    "compressed-tensors": "compressed-tensors",
    "fbgemm_fp8": "fbgemm-gpu",
    "modelopt": "nvidia-modelopt",
    "spqr": "spqr_quant",
    "higgs": "flute-kernel",
    "fp_quant": "fp_quant",
    "sinq": "sinq",
    "sdnq": "sdnq",
    "fouroversix": "fouroversix",
    "mxfp4": "kernels",
    "nvfp4": "kernels",
    "metal": "kernels",
}
"""Method of a `quantization_config` → package that reads its weights."""

_MODULES = {
    "optimum-quanto": "optimum.quanto",
    "amd-quark": "quark",
    "nvidia-modelopt": "modelopt",
    "flute-kernel": "flute",
}
"""Package → its module, if the names differ."""

_SCALES = re.compile(
    r"(^|[._])(?<!dora_)(scaled?|scales|scale_weight|weight_scale\w*|scale_input|input_scale|scale_inv|scaled_fp8|absmax"
    r"|quant_map|quant_state|nested_\w+|bitsandbytes__\w+|SCB|CB|weight_format|qweight|qzeros|g_idx|zero_points?|zeros|_data"
    r"|_scale|comfy_quant|qtype)($|\.)"
)
_NAME = re.compile(r"(?P<stem>[^.]+?)(\.(?P<v1>\w+))?(-(?P<part>\d+)-of-(?P<total>\d+))?(\.(?P<v2>\w+))?\.safetensors")


def some(names: Iterable[str], count: int = 3) -> str:
    """Return the first names in order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - count
    return ", ".join(ordered[:count]) + (f" and {more} more" if more > 0 else "")


def check_all_used(where: str | Path, names: Collection[str], user: str) -> None:
    """Raise if tensors of a weight file are not used.

    Args:
        where: file or folder.
        names: names of the tensors that are not used.
        user: description of the model that does not use them.

    Raises:
        InputError: there are unused tensors.
    """
    if not names:
        return
    advice = "is it the file of another model, or of another version?"
    if any(map(_SCALES.search, names)):
        advice = (
            "they look like scales of quantized weights, without which the weights are wrong: use the weights in "
            "float32, bfloat16 or float16"
        )
    raise InputError(f"{where} has {len(names)} tensors that {user} does not use ({some(names)}); {advice}")


def unused(names: Iterable[str], class_name: str) -> list[str]:
    """Return the names that a network of this class should not leave unused."""
    patterns = [*HARMLESS, *(pattern for start, pattern in OTHER_PARTS.items() if class_name.startswith(start))]
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]


def stored_dtypes(files: Iterable[Path]) -> dict[str, str]:
    """Return name → dtype of all tensors, as safetensors spells it: "F32", "F8_E4M3", "I8" …"""
    found: dict[str, str] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    return found


def check_floating(where: str | Path, dtypes: Mapping[str, str], networks: Iterable[torch.nn.Module]) -> None:
    """Raise if weights are stored as integers: they are quantized, and useless without their scales.

    Args:
        where: file or folder.
        dtypes: see `stored_dtypes`.
        networks: networks built from the file. Their integer buffers, such as indices, may be integers in the file.

    Raises:
        InputError: a weight is stored as integers.
    """
    buffers = (pair for network in networks for pair in network.named_buffers())
    known = {name.rpartition(".")[2] for name, buffer in buffers if not buffer.is_floating_point()}
    whole = {name for name, dtype in dtypes.items() if not dtype.startswith(("F", "BF"))}
    wrong = [name for name in unused(whole, "") if name.rpartition(".")[2] not in known]
    if wrong:
        kinds = ", ".join(sorted({dtypes[name] for name in wrong}))
        raise InputError(
            f"{where} holds weights as whole numbers ({kinds}: {some(wrong)}): these are quantized, which is not "
            "supported without a quantization_config; use the weights in float32, bfloat16 or float16"
        )


def weight_files(component: Path, variant: str | None) -> list[Path]:
    """Return the safetensors files with the weights of a component in a variant.

    Raises:
        InputError: there are several sets of files, or shards are missing or not listed in their index.
    """
    sets: dict[tuple[str, str | None], dict[str, Path]] = {}
    for path in sorted(component.glob("*.safetensors")):
        match = _NAME.fullmatch(path.name)
        stem, total, found = (match["stem"], match["total"], match["v1"] or match["v2"]) if match else (path.name,) * 3
        if not match or found == variant:
            sets.setdefault((stem, total), {})[match["part"] if match else ""] = path
    if len(sets) > 1:
        names = "; ".join(some((path.name for path in parts.values()), 1) for parts in sets.values())
        raise InputError(
            f"{component} holds {len(sets)} sets of weights, and one alone can be meant: keep one ({names})"
        )
    for (_, total), parts in sets.items():
        if total is not None and len(parts) != int(total):
            raise InputError(
                f"{component} is not complete: of {total} shards it holds {some(p.name for p in parts.values())}"
            )
    files = [path for parts in sets.values() for path in parts.values()]
    for index in component.glob(f"*.safetensors.index{'' if variant is None else '.' + variant}.json"):
        listed = set(listed_in(index))
        if missing := listed - {path.name for path in files}:
            raise InputError(
                f"{component} is not complete: {index.name} lists files that are missing ({some(missing)})"
            )
        if extra := {path.name for path in files} - listed:
            raise InputError(f"{component}: {index.name} does not list {some(extra)}, whose weights would be left out")
    return files


def listed_in(index: Path) -> Iterator[str]:
    """Yield the name of the file of each tensor, from an index of shards.

    Raises:
        InputError: the file cannot be read, or is not such an index.
    """
    try:
        files = json.loads(index.read_text("utf-8"))["weight_map"].values()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise InputError(f"{index} cannot be read as an index of weights: {e}") from e
    yield from map(str, files)


def cached_files(repository: str) -> list[Path]:
    """Return the safetensors files in the local cache that transformers reads for a hub model."""
    single = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(single, str):
        return [Path(single)]
    index = try_to_load_from_cache(repository, "model.safetensors.index.json")
    names = sorted(set(listed_in(Path(index)))) if isinstance(index, str) else []
    found = (try_to_load_from_cache(repository, name) for name in names)
    return [Path(path) for path in found if isinstance(path, str)]


def missing_library(e: ImportError) -> str:
    """Return a sentence that names the missing library and how to install it."""
    message = one_line(e)
    if e.name:
        return f"the library {e.name} is missing: pip install {e.name}"
    if re.search("sentencepiece|protobuf|tiktoken", message, re.IGNORECASE):
        return (
            "it needs a library that is missing, as tokenizers of T5 do without a tokenizer.json: "
            f"pip install 'diffusion-classifier[t5]' ({message})"
        )
    return f"it needs a library that is missing ({message})"


def quantization(folder: Path) -> str | None:
    """Return the quantization method in a component's config. None if its weights are not quantized.

    Raises:
        InputError: the library that reads such weights is missing.
    """
    try:
        config: Any = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None  # loading the component will raise
    if not isinstance(config, dict) or config.get("quantization_config") is None:
        return None
    quantized = config["quantization_config"]
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if isinstance(quantized, dict) and (quantized.get("load_in_4bit") or quantized.get("load_in_8bit")):
        method = "bitsandbytes"  # older configs do not name their method
    if not isinstance(method, str):
        raise InputError(f"{folder / 'config.json'}: quantization_config {quantized!r} does not name a quant_method")
    library = LIBRARIES.get(method)
    if library is not None and not _installed(_MODULES.get(library, library.replace("-", "_"))):
        raise InputError(
            f"{folder} is quantized by {method}, and the library that reads it is missing: pip install {library}, or "
            "use the weights in float32, bfloat16 or float16"
        )
    return method


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
