"""Bundled models, and hub repositories of supported families."""

from __future__ import annotations

import json

from .class_conditional import ClassConditional
from .families.registry import FAMILIES
from .load import bundled_models
from .model_settings import SETTINGS_FILE

KNOWN = tuple(
    (model.name, family.family, model.classes, model.licence)
    for family in sorted(FAMILIES, key=lambda family: issubclass(family, ClassConditional))
    for model in family.known_models
)
"""Name, family, classes and licence of models on the hub, text-to-image models first."""


def describe_bundled() -> list[tuple[str, str, str, str]]:
    """Return name, family, classes and licence of each bundled model, without loading it."""
    rows = []
    for name, folder in bundled_models().items():
        settings = json.loads((folder / SETTINGS_FILE).read_text("utf-8"))
        if "words" in settings:
            family, classes = "stable-diffusion", f"any text of {len(settings['words'])} words"
        else:
            family, classes = "class-unet", ", ".join(settings["class_names"])
        rows.append((name, family, classes, settings.get("licence", "")))
    return rows
