"""Index of a saved pipeline: which class it has, which family reads it, and which components are loaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from ..errors import InputError
from .base import Denoiser, without_advice
from .families.late import LateConditionedPipeline
from .families.registry import PIPELINES, why_unsupported

_UNUSED = {
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "watermarker": None,
    "requires_safety_checker": False,
    "add_watermarker": False,
}
"""Arguments of `from_pretrained` that leave out the components that only sampling needs."""


@dataclass(frozen=True)
class ModelIndex:
    """Checked content of a model_index.json.

    Args:
        source: model as the user named it, for messages.
        pipeline: class of the pipeline.
        components: name → library and class of the components that are loaded.
        id2label: class names that DiT's index holds, of which diffusers keeps a part only. None if it holds none.
    """

    source: str | Path
    pipeline: Any
    components: Mapping[str, list[str]]
    id2label: Any = None

    @classmethod
    def read(cls, content: Mapping[str, Any], source: str | Path) -> ModelIndex:
        """Check that the pipeline is supported, and that it needs no code of the model's own.

        Raises:
            InputError: an unsupported pipeline, or a component of another library.
        """
        kind = content.get("_class_name")
        if isinstance(kind, list):
            raise InputError(f"{source} needs a pipeline of its own, {kind}: code that comes with a model is not run")
        if not isinstance(kind, str) or kind not in PIPELINES:
            raise InputError(
                f"{source}: pipelines of class {kind} are not supported, since {why_unsupported(str(kind))}; known are "
                f"{', '.join(PIPELINES)}"
            )
        parts = (item for item in content.items() if item[0] not in _UNUSED)
        components = {k: v for k, v in parts if isinstance(v, list) and len(v) == 2 and v[0]}
        for name, (library, class_name) in components.items():
            # diffusers looks for an unknown library in the model's folder; Auto classes may look there too.
            if library not in ("diffusers", "transformers") or re.match("Auto[A-Z]", str(class_name)):
                raise InputError(
                    f"{source} needs {library}.{class_name} for its {name}: code that comes with a model is not run"
                )
        with without_advice():  # the import warns about image processors, which are not used here
            pipeline = LateConditionedPipeline if kind == LateConditionedPipeline.__name__ else getattr(diffusers, kind)
        return cls(source, pipeline, components, content.get("id2label"))

    @property
    def family(self) -> type[Denoiser]:
        """Class of the denoiser."""
        return PIPELINES[self.pipeline.__name__]

    def absent(self, without: Collection[str]) -> dict[str, Any]:
        """Return the pipeline's arguments for components that are left out, unused here, or were never saved.

        Raises:
            InputError: `without` names a component that does not read prompts.
        """
        parameters = inspect.signature(self.pipeline).parameters
        readers = [name for name in parameters if name.startswith(("text_encoder", "tokenizer"))]
        for name in without:
            if name not in readers:
                known = ", ".join(readers) or "none"
                raise InputError(
                    f"{name!r} cannot be left out of {self.source}: only what reads prompts can, which is {known}"
                )
        # The index of a pipeline that was saved without a text encoder does not mention that encoder.
        missing = {name: None for name in readers if name in without or name not in self.components}
        return missing | {name: value for name, value in _UNUSED.items() if name in parameters}
