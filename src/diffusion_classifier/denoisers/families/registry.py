"""Families that load from folders, and why other pipelines of diffusers are not supported.

Each family states in its own file which pipelines it takes. A new family is added to `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..base import Denoiser
from .class_unet import ClassUNet
from .deepfloyd_if import DeepFloydIF
from .dit import DiT
from .flux import Flux
from .lumina2 import Lumina2
from .pixart import PixArt
from .sana import Sana
from .stable_diffusion import StableDiffusion
from .stable_diffusion_3 import StableDiffusion3
from .stable_diffusion_xl import StableDiffusionXL
from .z_image import ZImage

FAMILIES: tuple[type[Denoiser], ...] = (
    ClassUNet,
    DiT,
    StableDiffusion,
    StableDiffusionXL,
    DeepFloydIF,
    PixArt,
    StableDiffusion3,
    Flux,
    Sana,
    Lumina2,
    ZImage,
)

PIPELINES: Mapping[str, type[Denoiser]] = {name: family for family in FAMILIES for name in family.pipelines}
"""Pipeline class, as model_index.json names it → class of its denoiser."""

_REASONS = (
    (
        "Audio|Music|DanceDiffusion|Spectrogram|AceStep",
        "it makes sounds, not images",
    ),
    (
        "Video|Wan|LTX|AnimateDiff|AnyFlow|Allegro|Mochi|Latte|SkyReels|Skyreels|Cosmos(?!2TextToImage)|ConsisID|I2V|T2V|PIA|Helios|Lucy"
        "|EasyAnimate|ChronoEdit|SanaWM|TI2VA|Framepack",
        "it makes videos, not images",
    ),
    ("ShapE|LDM3D|Proteina", "it makes shapes, not images"),
    ("LLaDA|Gemma|PromptEnhancer", "it writes text"),
    ("Marigold", "it predicts maps of an image, not images of a text"),
    ("Control|Adapter|GLIGEN|VisualCloze", "its network reads a control image or layout beside the prompt"),
    (
        "Upscal|SuperResolution|SR|Upsample|Refiner|HDR",
        "its network reads a smaller or blurred image beside the prompt",
    ),
    (
        "Inpaint|Fill|(?<!Diff)Edit(?!ing)|Kontext|Pix2Pix(?!Zero)|Depth2Img|PaintByExample|RePaint|Layered",
        "it changes a given image, which its network may read beside the prompt",
    ),
    (
        "Kandinsky(?!3|5)|Cascade|Wuerstchen|UnCLIP|Prior|Redux|ImageVariation|BlipDiffusion|ImageProjection",
        "its networks meet in an embedding of the image, which a prior draws at random from the prompt",
    ),
    (
        "VQDiffusion|Amused",
        "its network predicts discrete tokens, and there is no noise whose prediction could be compared",
    ),
    (
        "(?<!Latent)ConsistencyModel|SanaSprint",
        "its network was distilled into few steps and predicts no noise at most times",
    ),
    (
        "LDMPipeline|PNDM|KarrasVe|ScoreSde",
        "it is unconditional: it has no classes to compare",
    ),
    (
        "Img2Img|I2I|PAG|SAG|AttendAndExcite|Panorama|Semantic|LEditsPP|DiffEdit|Cycle|Paradigms|ModelEditing|Safe|Zero",
        "it is another way of sampling from a network that has a text-to-image pipeline: save it as that, which "
        "from_pipe of that pipeline makes of it",
    ),
)
"""Pattern of the name of a pipeline class → why it is not supported. The first match holds."""


def why_unsupported(kind: str) -> str:
    """Return why pipelines of this class cannot be used, as the end of a sentence."""
    for pattern, reason in _REASONS:
        if re.search(pattern, kind):
            return reason
    return "nobody has written an adapter for it"
