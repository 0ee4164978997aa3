"""Bundled models, and hub repositories of supported families."""

from __future__ import annotations

from .class_conditional import ClassConditional
from .families.registry import FAMILIES
from .load import bundled_models
from .model_index import ModelIndex
from .model_settings import SETTINGS_FILE, ModelSettings
from .networks import read_json

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
        family = ModelIndex.read(read_json(folder / "model_index.json"), name).family
        settings = ModelSettings.read(read_json(folder / SETTINGS_FILE), folder / SETTINGS_FILE)
        closed = None if settings.words is None else f"any text of {len(settings.words)} words"
        rows.append((name, family.family, closed or ", ".join(settings.class_names), settings.licence or ""))
    return rows
