"""Load networks from a folder or hub id, and check that all tensors of their weight files are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import is_accelerate_available
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from ..errors import InputError
from .devices import one_line
from .weight_files import (
    cached_files,
    check_all_used,
    check_floating,
    listed_in,
    quantization,
    some,
    stored_dtypes,
    unused,
    weight_files,
)

FAULTS = (
    OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
"""Exceptions that the libraries raise for files and configs that cannot be used."""

OPTIONS = {"use_safetensors": True, "low_cpu_mem_usage": is_accelerate_available()}
"""Arguments of every `from_pretrained`. They rule out pickles, and avoid a warning if accelerate is missing."""


def load_network(
    folder: str | Path,
    library: str,
    class_name: str,
    dtype: torch.dtype,
    variant: str | None,
    *,
    headless: bool = False,
    **options: Any,
) -> torch.nn.Module:
    """Load a network with all weights of a folder, or for classes of transformers of a hub id, from safetensors.

    Args:
        folder: folder with the network's config and weights, or hub id.
        library: "diffusers" or "transformers".
        class_name: class of the network.
        dtype: dtype of its weights.
        variant: variant of the files.
        headless: whether the network is the base of a full model, whose last layers may be left out.
        options: further arguments of the class's `from_pretrained`.

    Raises:
        InputError: weights are missing, or would be left out or read wrongly.
    """
    files = weight_files(Path(folder), variant) if Path(folder).is_dir() else cached_files(str(folder))
    quantized = quantization(Path(folder))
    network_class = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
    network, report = network_class.from_pretrained(
        folder, dtype=dtype, variant=variant, output_loading_info=True, **OPTIONS, **options
    )
    if report["missing_keys"]:
        raise InputError(f"{folder} lacks weights, which would be random: {some(report['missing_keys'], 10)}")
    dtypes = stored_dtypes(files)
    left = unused(report["unexpected_keys"], type(network).__name__)
    if headless:  # names are reported as the network would have them, not always as the file has
        base = str(getattr(network, "base_model_prefix", ""))
        own = {base, *(name for name, _ in network.named_children())}
        left = [name for name in left if name.partition(".")[0] in own or f"{base}.{name}" in dtypes]
    check_all_used(folder, left, f"its {type(network).__name__}")
    if quantized is None:
        check_floating(folder, dtypes, [network])
    return network  # type: ignore[no-any-return]


def check_files(component: Path) -> None:
    """Raise if a component could only be loaded by running code, or by unpickling, which may run code."""
    if not component.is_dir():
        raise InputError(f"{component.parent} is not complete: it has no folder {component.name}")
    if any(component.glob("*.py")):
        raise InputError(f"{component} holds Python code: code that comes with a model is not run")
    if not (component / "config.json").is_file():
        return  # a scheduler or a tokenizer
    names = [read_json(component / "config.json").get("transformers_weights", "model.safetensors")]
    for shards in component.glob("*.safetensors*.json"):  # including those of variants
        names += listed_in(shards)
    names = [name for name in map(str, names) if not name.endswith((".safetensors", ".safetensors.index.json"))]
    if names or not any(component.glob("*.safetensors")):
        raise InputError(
            f"{component} has its weights not in *.safetensors, and other formats are not loaded, since unpickling "
            "can run code; save the pipeline again with save_pretrained(…, safe_serialization=True)"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: the file cannot be read, or does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{path} cannot be read: {one_line(e)}") from e
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return content
