"""What baselines share: models of transformers that answer in one pass, from a folder or the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
import transformers
from huggingface_hub import hf_hub_download
from PIL.Image import Image
from torch import Tensor

from ..data.images import preprocess
from ..denoisers.base import without_advice
from ..denoisers.class_conditional import class_ids
from ..denoisers.devices import one_line, resolve_device, resolve_dtype
from ..denoisers.load import located, quiet
from ..denoisers.networks import FAULTS, check_files, load_network
from ..denoisers.sampling import to_image
from ..denoisers.weight_files import missing_library
from ..errors import InputError

CONTRASTIVE = ("clip", "siglip", "siglip2")
"""`model_type` of the contrastive models that can be used."""

FEATURES = "features.json"
"""What a folder with a head on features holds; see `features`."""

OPEN_CLIP = "open_clip_config.json"
"""What a folder with a model of the library open_clip holds."""

TRAINING_SIZE = "training_size"
"""In the config of networks that are trained here: the edge that their images were brought to first, in pixels."""

Scorer: TypeAlias = Callable[[Image, Sequence[int]], Tensor]
"""Logits (T,), float32, of an RGB image for some of the classes, by their positions."""

_PIL: dict[str, Any] = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
"""Asks for image processors that do without torchvision."""


class Baseline(Protocol):
    """A model that answers in one pass.

    Attributes:
        batch_size: 1: no bit of an answer depends on other images.
        model_kind: kind of the model, as in `RunSpec.model_kind`.
        class_names: the classes that it knows; None where any text will do.
    """

    batch_size: int | str
    model_kind: ClassVar[str]

    @property
    def class_names(self) -> Sequence[str] | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def image_size(self) -> int: ...
    def fingerprint(self) -> str: ...
    def scorer(self, classes: Sequence[str] | Sequence[int], templates: Sequence[str] = ()) -> Scorer:
        """What scores images for these classes.

        Args:
            classes: T.
            templates: that make texts of them, for a model that reads some.

        Raises:
            InputError: a class that the model cannot know, or a text that is too long.
        """


class KnownClasses:
    """What baselines share that know a list of classes.

    Attributes:
        class_names: those that it was trained with.
    """

    class_names: tuple[str, ...]

    def logits(self, image: Image) -> Tensor:
        """Of all classes, (K,), float32, for an RGB image."""
        raise NotImplementedError

    def scorer(
        self,
        classes: Sequence[str] | Sequence[int],
        templates: Sequence[str] = (),  # noqa: ARG002 - of the protocol
    ) -> Scorer:
        """See `Baseline`."""
        ids = class_ids(classes, self.class_names)
        return lambda image, among: self.logits(image)[[ids[k] for k in among]]


def as_in_training(model: Any, image: Image) -> Image:
    """An RGB image, small where a network that was trained here saw small ones before its processor enlarged them."""
    size = getattr(model.config, TRAINING_SIZE, None)
    return image if size is None else to_image(preprocess(image, size))


def kind_of(source: str | Path) -> Literal["contrastive", "supervised", "features"] | None:
    """Which baseline a folder or hub id holds, by its configs; None where it holds a pipeline or anything else."""
    folder = located(source)
    if (folder / FEATURES).is_file():
        return "features"
    if (folder / "model_index.json").is_file():
        return None
    config = _config(source)
    heads = config.get("architectures") or [""]
    if str(heads[0]).endswith("ForImageClassification"):  # of CLIP, too
        return "supervised"
    return "contrastive" if config.get("model_type") in CONTRASTIVE or of_open_clip(source) else None


def of_open_clip(source: str | Path) -> bool:
    """Whether a folder or hub id holds a model of open_clip, and not of transformers."""
    return _config(source).get("model_type") not in CONTRASTIVE and _file_of(source, OPEN_CLIP) is not None


def _config(source: str | Path) -> dict[str, Any]:
    """Of transformers; empty where there is none."""
    file = _file_of(source, "config.json")
    try:
        config = {} if file is None else json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _file_of(source: str | Path, name: str) -> Path | None:
    """A file of a folder or hub id; None if there is none, or no hub: whoever loads the model says what is wrong."""
    folder = located(source)
    if folder.exists():
        return folder / name if (folder / name).is_file() else None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        return None
    try:
        return Path(hf_hub_download(str(source), name))
    except (OSError, ValueError):
        return None


def load_hub_model(
    source: str | Path,
    kind: str,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    with_tokenizer: bool = False,
    headless: bool = False,
) -> tuple[Any, Any, Any]:
    """Model, image processor and, where there is one, tokenizer that transformers saved.

    Args:
        source: folder or hub id; or, of a bundled model, as "scenes/contrastive".
        kind: of transformers' automatic classes, such as "AutoModel".
        device: as in `load_denoiser`.
        dtype: of the network; float32 if "auto".
        with_tokenizer: whether there is one.
        headless: see `load_network`.

    Raises:
        InputError: nothing there, no safetensors, or a file that cannot be used.
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
    """Edge of the images that an image processor makes; 0 where that is left to each image."""
    size: dict[str, int] = dict(getattr(image_processor, "crop_size", None) or image_processor.size or {})
    return size.get("height", size.get("shortest_edge", 0))
