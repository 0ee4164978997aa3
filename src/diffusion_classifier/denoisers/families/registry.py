"""Which of diffusers' pipelines are supported, and why the others are not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .class_unet import ClassUNet
from .dit import DiT
from .stable_diffusion import DeepFloydIF, StableDiffusion, StableDiffusionXL
from .text_transformers import Flux, Lumina2, PixArt, Sana, StableDiffusion3, ZImage

FAMILIES: Mapping[str, type[Any]] = {
    "DDPMPipeline": ClassUNet,
    "DDIMPipeline": ClassUNet,
    "LateConditionedPipeline": ClassUNet,
    "DiTPipeline": DiT,
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionImg2ImgPipeline": StableDiffusion,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "IFPipeline": DeepFloydIF,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "SanaPipeline": Sana,
    "Lumina2Pipeline": Lumina2,
    "ZImagePipeline": ZImage,
}
"""Pipeline class, as model_index.json names it → that of its denoiser."""

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
"""What the name of a pipeline class contains, and why it is not supported; the first one holds."""


def why_unsupported(kind: str) -> str:
    """Why pipelines of this class cannot be used, as the end of a sentence."""
    for pattern, reason in _REASONS:
        if re.search(pattern, kind):
            return reason
    return "nobody has written an adapter for it"
