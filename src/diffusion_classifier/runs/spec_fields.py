"""Values of the fields of a `RunSpec`, for evaluators."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from ..classifier import DiffusionClassifier
from ..data.captioned import CaptionedSource
from ..denoisers import Conditioning
from ..errors import InputError
from ..search.settings import ScoringSettings
from ..search.shortlists import Shortlist, Tree
from .selection import Images
from .spec import RunSpec

_LIBRARIES = ("diffusion-classifier", "torch", "diffusers", "transformers", "numpy", "Pillow")


def about_run(
    source: Images, positions: Sequence[int], model: str, command: str, notes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the fields that every run has: data, selection and provenance."""
    return {
        "data": source.fingerprint(),
        "selection": _digest(source.ids[i] for i in positions),
        "num_images": len(positions),
        "source": source.name,
        "shift": getattr(source, "shift", ""),
        "notes": (*source.notes, *notes),
        "model": model,
        "command": command,
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def about_reading(
    classifier: DiffusionClassifier, reading: ScoringSettings, conditioning: Conditioning
) -> dict[str, Any]:
    """Return the fields of a diffusion model and its settings. Side effect: tunes and compiles the network."""
    denoiser, lags = classifier.denoiser, getattr(reading.strategy, "lags", None)
    settings = classifier.scorer.table_settings(reading)
    return {
        "weights_of_model": denoiser.fingerprint(),
        "image_size": denoiser.image_size,
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "lags": None if lags is None else _digest(map(repr, lags)),
        "device": str(denoiser.device),
        "batch_size": classifier.scorer.prepare(conditioning),
        "channels_last": denoiser.channels_last,
        "compiled": denoiser.compiled,
        **{f.name: settings[f.name] for f in fields(RunSpec) if f.name in settings},
    }


def about_captions(source: CaptionedSource) -> dict[str, Any]:
    """Return the fields of a run whose images have captions of their own."""
    kind, metric = ("pairs", "text_score") if source.paired else ("captions", "accuracy")
    return {"kind": kind, "metric": metric, "class_names": ()}


def about_errors(store_errors: bool, extra_losses: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of the stored error tables.

    Raises:
        InputError: tables of other losses are requested without those of the run's own loss.
    """
    if extra_losses and not store_errors:
        raise InputError("errors of other losses can be kept only where errors are kept at all")
    return {"store_errors": store_errors, "extra_losses": extra_losses}


def about_shortlist(shortlist: Shortlist) -> str:
    """Return a shortlist as the command line spells it, with the other settings that decide what it keeps."""
    settings = {f.name: getattr(shortlist, f.name) for f in fields(shortlist)} if is_dataclass(shortlist) else {}
    if isinstance(shortlist, Tree):
        settings["tree"] = _digest([json.dumps(shortlist.branches)])
    values = (f"{name} {settings[name]}" for name in ("keep", "num_draws", "tree") if name in settings)
    return ", ".join((str(shortlist), *values))


def _digest(values: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(values).encode()).hexdigest()
