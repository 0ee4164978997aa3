"""Read and load models that transformers saved, from a folder or the hub."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from PIL.Image import Image

from ..data.images import preprocess
from ..denoisers.base import without_advice
from ..denoisers.devices import one_line, resolve_device, resolve_dtype
from ..denoisers.load import located, quiet
from ..denoisers.networks import FAULTS, check_files, load_network
from ..denoisers.sampling import to_image
from ..denoisers.weight_files import missing_library
from ..errors import InputError

TRAINING_SIZE = "training_size"
"""Key in the config of networks trained by this package: pixels along an edge of the training images."""

_PIL: dict[str, Any] = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
"""Arguments that select image processors without torchvision."""


class ModelFiles:
    """Small files of a model, which say what it is before its weights are read.

    Args:
        source: folder or hub id; or, for a bundled model, "scenes/contrastive".
    """

    def __init__(self, source: str | Path) -> None:
        self.source, self.folder = source, located(source)

    @property
    def is_pipeline(self) -> bool:
        """True for a folder that holds a diffusion pipeline."""
        return (self.folder / "model_index.json").is_file()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config that transformers saved; empty if there is none."""
        file = self.find("config.json")
        try:
            config = {} if file is None else json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return config if isinstance(config, dict) else {}

    def find(self, name: str) -> Path | None:
        """Return a file of the folder or hub id; None if it is missing or the hub cannot be reached.

        No error is raised here: loading the model reports what is wrong.
        """
        if self.folder.exists():
            return self.folder / name if (self.folder / name).is_file() else None
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(self.source)):
            return None
        try:
            return Path(hf_hub_download(str(self.source), name))
        except (OSError, ValueError):
            return None


def as_in_training(model: Any, image: Image) -> Image:
    """Return an RGB image at the size of the training images, for a network trained by this package.

    Its processor enlarges images, so that a large image has to be made small first. Other networks get the image as it
    is.
    """
    size = getattr(model.config, TRAINING_SIZE, None)
    return image if size is None else to_image(preprocess(image, size))


def load_hub_model(
    source: str | Path,
    kind: str,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    with_tokenizer: bool = False,
    headless: bool = False,
) -> tuple[Any, Any, Any]:
    """Load a model, its image processor and its tokenizer (None without `with_tokenizer`).

    Args:
        source: folder or hub id; or, for a bundled model, "scenes/contrastive".
        kind: name of an automatic class of transformers, such as "AutoModel".
        device: as in `load_denoiser`.
        dtype: dtype of the network; float32 if "auto".
        with_tokenizer: load a tokenizer, too.
        headless: see `load_network`.

    Raises:
        InputError: the model is missing, has no safetensors, or has a file that cannot be used.
    """
    device = resolve_device(str(device))
    precision = torch.float32 if dtype == "auto" else resolve_dtype(dtype, device)
    if (folder := located(source)).is_dir():
        check_files(source := folder)
    safe: dict[str, Any] = {"trust_remote_code": False}
    try:
        with quiet(), without_advice(), torch.random.fork_rng(range(torch.cuda.device_count())):
            model = load_network(source, "transformers", kind, precision, None, headless=headless, **safe)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **safe) if with_tokenizer else None
            images = transformers.AutoImageProcessor.from_pretrained(source, **safe, **_PIL)
    except InputError:
        raise
    except ImportError as e:
        raise InputError(f"{source} cannot be loaded: {missing_library(e)}") from e
    except FAULTS as e:
        raise InputError(f"{source} cannot be loaded: {one_line(e)}") from e
    return model.to(device), images, tokenizer


def image_size_of(image_processor: Any) -> int:
    """Return the height and width in pixels that an image processor makes; 0 if it keeps the size of each image."""
    size: dict[str, int] = dict(getattr(image_processor, "crop_size", None) or image_processor.size or {})
    return size.get("height", size.get("shortest_edge", 0))
