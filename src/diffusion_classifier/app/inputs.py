"""Shared by the tabs: lazily loaded models, uploads, checks of inputs, and error messages."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import gradio as gr
import numpy as np
from PIL import ImageOps

from ..baselines.base import Baseline
from ..baselines.load import load_baseline
from ..classifier import DiffusionClassifier
from ..data.images import ImageError, Picture, load_image
from ..denoisers.devices import one_line, out_of_memory
from ..errors import InputError

QUEUE = {"concurrency_limit": 1, "concurrency_id": "model"}
"""Arguments of events that use a network: they run one at a time, for all users together."""
MAX_PAIRS = 256_000
"""Maximum number of labels times draws in one request, so that no user blocks the queue for an hour."""
MAX_TEXT = 20_000
"""Maximum number of characters of labels or captions."""


class Models:
    """Models by name, each loaded at its first use and kept.

    Args:
        names: bundled names, folders or hub ids.
        contrastive: contrastive model to compare text-to-image models with. If None, only the bundled text-to-image
            model is compared, with the bundled contrastive model.
        options: options of `DiffusionClassifier.from_pretrained`.

    Attributes:
        turn: lock to hold while a model is loaded or used. The queue alone does not suffice, because gradio starts the
            next event before a cancelled search has ended.
    """

    def __init__(self, names: list[str], contrastive: str | None, options: Mapping[str, Any]) -> None:
        self.names = names
        self.turn = RLock()
        self._contrastive = contrastive
        self._options = options
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> DiffusionClassifier:
        if name not in self.names:  # a client can send anything
            raise InputError(f"there is no model {name!r} here; there are {', '.join(self.names)}")
        with self.turn:
            if name not in self._loaded:
                self._loaded[name] = DiffusionClassifier.from_pretrained(name, **self._options)
            return self._loaded[name]  # type: ignore[no-any-return]

    def contrastive(self, name: str) -> Baseline | None:
        """Return the contrastive model to compare a model with; None if there is none."""
        source = self._contrastive or ("scenes/contrastive" if name == "scenes" else None)
        if source is None or self[name].denoiser.class_names is not None:
            return None
        with self.turn:
            if source not in self._loaded:
                device = self._options.get("device", "auto")
                self._loaded[source] = load_baseline(source, "contrastive", device=device)
            return self._loaded[source]  # type: ignore[no-any-return]


def upload(**options: Any) -> gr.Image:
    """Return an image component that passes on the uploaded file undecoded, so that `load_image` reports its errors."""
    component = gr.Image(
        label="Photograph", type="filepath", format="png", elem_classes=["dc-photo", "dc-upload"], **options
    )
    return _as_sent(component, lambda payload: payload)


def sketchpad(value: Any, **options: Any) -> gr.Sketchpad:
    """Return a sketchpad that passes on the uploaded file undecoded; gradio would decode every layer."""
    component = _as_sent(gr.Sketchpad(value, **options), lambda payload: payload.composite)
    component.accept_blobs = None  # it would bypass the queue and the limits
    return component


def _as_sent(component: Any, file_of: Callable[[Any], Any]) -> Any:
    """Let a component pass on the path of the uploaded file, and reject links."""
    move = component.async_move_resource_to_block_cache

    async def move_file(path: Any) -> str | None:
        if str(path).startswith(("http://", "https://")):  # gradio would download it
            raise gr.Error("an image is sent as a file, not as a link", print_exception=False)
        moved: str | None = await move(path)
        return moved

    def path_of(payload: Any) -> str | None:  # gradio has checked that the file is an upload
        file = None if payload is None else file_of(payload)
        if file is not None and file.path is None:
            raise gr.Error("an image is sent as a file", print_exception=False)
        return None if file is None else str(file.path)

    # Not a subclass, for which gradio would write a file beside this one.
    component.async_move_resource_to_block_cache, component.preprocess = move_file, path_of
    return component


def read_upload(file: str | None, negative: bool = False) -> Picture:
    """Load the uploaded image, inverted if `negative`. Messages give its own name, not its path on the server.

    Raises:
        ImageError: the image cannot be used.
        InputError: nothing was uploaded.
    """
    if file is None:
        raise InputError("there is no image yet: choose a photograph, or draw")
    try:
        picture = load_image(file)
    except ImageError as e:
        raise ImageError(str(e).replace(file, Path(file).name)) from e
    return replace(picture, image=ImageOps.invert(picture.image)) if negative else picture


def drawing_of(file: str | None) -> Picture:
    """Load the drawing, on black.

    Raises:
        InputError: nothing was drawn.
    """
    drawn = None if file is None else load_image(file, "drawing", background=(0, 0, 0))
    if drawn is None or not np.ptp(np.asarray(drawn.image)):
        raise InputError("nothing is drawn yet: draw something, or choose a photograph")
    return drawn


@contextmanager
def sentences() -> Iterator[None]:
    """Show a user's mistake, or a lack of memory, as a sentence on the page."""
    try:
        yield
    except InputError as e:  # escaped, since gradio shows it as HTML
        raise gr.Error(html.escape(str(e), quote=False), duration=None, print_exception=False) from e
    except (MemoryError, RuntimeError) as e:
        if out_of_memory(e):
            reason = html.escape(one_line(e), quote=False)
            raise gr.Error(f"memory does not suffice ({reason}): take fewer draws or labels") from e
        raise


def check_text_length(*texts: str | None) -> None:
    """Raise if a text is longer than the fields of the page allow; a program can send more.

    Raises:
        InputError: a text has more than `MAX_TEXT` characters.
    """
    for text in texts:
        if text is not None and len(text) > MAX_TEXT:
            raise InputError(f"a text of {len(text):,} characters is too long here: {MAX_TEXT:,} at most")


def check_work(what: str, texts: Sequence[str], draws: int) -> None:
    """Raise if a request would block the queue for too long.

    Raises:
        InputError: the texts times the draws exceed `MAX_PAIRS`.
    """
    if len(texts) * draws > MAX_PAIRS:
        raise InputError(f"{len(texts):,} {what} at {draws} draws are too many here: {MAX_PAIRS:,} in all at most")
