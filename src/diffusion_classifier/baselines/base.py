"""The protocol of baselines, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import torch
from PIL.Image import Image
from torch import Tensor

from ..denoisers.base import fingerprint
from ..denoisers.class_conditional import class_ids
from .pretrained import ModelFiles, image_size_of

Logits: TypeAlias = Callable[[Image, Sequence[int]], Tensor]
"""Function from an RGB image and positions of T classes to their logits (T,), float32."""


class Baseline(Protocol):
    """A model that classifies an image in one forward pass.

    Attributes:
        batch_size: 1, so that no result depends on the other images of a batch.
        model_kind: kind of the model, as in `RunSpec.model_kind`.
        class_names: classes that the model was trained on; None if it takes any text.
    """

    batch_size: int | str
    model_kind: ClassVar[str]

    @classmethod
    def recognizes(cls, files: ModelFiles) -> bool:
        """Return True if this class loads the model with these files."""

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device = "auto", dtype: str | torch.dtype = "auto"
    ) -> Self:
        """Load a folder or hub id."""

    @property
    def class_names(self) -> Sequence[str] | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def image_size(self) -> int: ...
    def fingerprint(self) -> str: ...
    def logits_for(self, classes: Sequence[str] | Sequence[int], templates: Sequence[str] = ()) -> Logits:
        """Return a function that computes the logits of these classes for an image.

        Args:
            classes: T names or indices.
            templates: prompt templates, for a model that takes text; names are used as they are if there are none.

        Raises:
            InputError: a class that the model does not have, or a text that is too long.
        """


class HubNetwork:
    """Properties of a model that is one network with an image processor, as transformers saves them."""

    model: Any
    image_processor: Any

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's weights and computations."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the network's input; 0 if the size of each image is kept."""
        return image_size_of(self.image_processor)

    def fingerprint(self) -> str:
        """Return a hash of the weights; see `Denoiser.fingerprint`."""
        return fingerprint([self.model])


class KnownClasses:
    """Base of baselines that were trained on a fixed list of classes.

    Attributes:
        class_names: these classes.
    """

    class_names: tuple[str, ...]

    def logits(self, image: Image) -> Tensor:
        """Return the logits of all classes, (K,), float32, for an RGB image."""
        raise NotImplementedError

    def logits_for(
        self,
        classes: Sequence[str] | Sequence[int],
        templates: Sequence[str] = (),  # noqa: ARG002 - of the protocol
    ) -> Logits:
        """See `Baseline.logits_for`."""
        ids = class_ids(classes, self.class_names)
        return lambda image, among: self.logits(image)[[ids[k] for k in among]]
