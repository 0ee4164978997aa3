"""Networks from the weight files of a folder or hub id, all of whose tensors are accounted for."""

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
    listed_in,
    quantization,
    refuse_integers,
    refuse_unused,
    some,
    stored_dtypes,
    unused,
    weight_files,
)

FAULTS = (
    OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
"""Exceptions that loading raises for files and configs that cannot be used."""

OPTIONS = {"use_safetensors": True, "low_cpu_mem_usage": is_accelerate_available()}
"""Arguments of every `from_pretrained`: without them it would open pickles, and warn that accelerate is missing."""


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
    """A network made of all weights of a folder, or hub id, where the class is of transformers, from safetensors.

    Args:
        folder: with the network's config and weights.
        library: "diffusers" or "transformers".
        class_name: of the network.
        dtype: of its weights.
        variant: of the files.
        headless: whether the network is the base of another, whose last layers may be left out.
        options: of the class's `from_pretrained`.

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
    refuse_unused(folder, left, f"its {type(network).__name__}")
    if quantized is None:
        refuse_integers(folder, dtypes, [network])
    return network  # type: ignore[no-any-return]


def check_files(component: Path) -> None:
    """Refuse what could only be loaded by running code or by unpickling, which may run code."""
    if not component.is_dir():
        raise InputError(f"{component.parent} is not complete: it has no folder {component.name}")
    if any(component.glob("*.py")):
        raise InputError(f"{component} holds Python code: code that comes with a model is not run")
    if not (component / "config.json").is_file():
        return  # no network, but a scheduler or a tokenizer
    names = [read_json(component / "config.json").get("transformers_weights", "model.safetensors")]
    for shards in component.glob("*.safetensors*.json"):  # of variants, too
        names += listed_in(shards)
    names = [name for name in map(str, names) if not name.endswith((".safetensors", ".safetensors.index.json"))]
    if names or not any(component.glob("*.safetensors")):
        raise InputError(
            f"{component} has its weights not in *.safetensors, and other formats are not loaded, since unpickling "
            "can run code; save the pipeline again with save_pretrained(…, safe_serialization=True)"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

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
