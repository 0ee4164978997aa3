"""What the tabs share: models that are loaded when they are asked for, uploads, and sentences for mistakes."""

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
"""Of events that use a network: one at a time, whoever asks; the others wait in a queue."""
MAX_PAIRS = 256_000
"""Of labels and draws in one request: nobody keeps the others waiting for an hour."""
MAX_TEXT = 20_000
"""Characters of labels, or captions."""


class Models:
    """Models by their names, each loaded at its first use and kept.

    Args:
        names: bundled, folders, or hub ids.
        contrastive: to compare text-to-image models with; the bundled one for the bundled one if None.
        options: of `DiffusionClassifier.from_pretrained`.

    Attributes:
        turn: to be held while a model is loaded or used. The queue sees to it, too, but gradio lets the next in before
            a search that somebody stopped has ended.
    """

    def __init__(self, names: list[str], contrastive: str | None, options: Mapping[str, Any]) -> None:
        self.names = names
        self.turn = RLock()
        self._contrastive = contrastive
        self._options = options
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> DiffusionClassifier:
        if name not in self.names:  # whatever a client sends
            raise InputError(f"there is no model {name!r} here; there are {', '.join(self.names)}")
        with self.turn:
            if name not in self._loaded:
                self._loaded[name] = DiffusionClassifier.from_pretrained(name, **self._options)
            return self._loaded[name]  # type: ignore[no-any-return]

    def contrastive(self, name: str) -> Baseline | None:
        """What a model is compared with, if anything."""
        source = self._contrastive or ("scenes/contrastive" if name == "scenes" else None)
        if source is None or self[name].denoiser.class_names is not None:
            return None
        with self.turn:
            if source not in self._loaded:
                device = self._options.get("device", "auto")
                self._loaded[source] = load_baseline(source, "contrastive", device=device)
            return self._loaded[source]  # type: ignore[no-any-return]


def upload(**options: Any) -> gr.Image:
    """An image as the file that was sent, undecoded: what is wrong with it is then said by `load_image`."""
    component = gr.Image(
        label="Photograph", type="filepath", format="png", elem_classes=["dc-photo", "dc-upload"], **options
    )
    return _as_sent(component, lambda payload: payload)


def sketchpad(value: Any, **options: Any) -> gr.Sketchpad:
    """A drawing as the file that was sent, of which gradio would decode every layer, whatever it is."""
    component = _as_sent(gr.Sketchpad(value, **options), lambda payload: payload.composite)
    component.accept_blobs = None  # a way around the queue and the limits, which this page has no need of
    return component


def _as_sent(component: Any, file_of: Callable[[Any], Any]) -> Any:
    """The component, giving the path of the file in what was sent, which is no link."""
    move = component.async_move_resource_to_block_cache

    async def move_file(path: Any) -> str | None:
        if str(path).startswith(("http://", "https://")):  # gradio would fetch it
            raise gr.Error("an image is sent as a file, not as a link", print_exception=False)
        moved: str | None = await move(path)
        return moved

    def path_of(payload: Any) -> str | None:  # gradio has seen to it that the file is one of its own
        file = None if payload is None else file_of(payload)
        if file is not None and file.path is None:
            raise gr.Error("an image is sent as a file", print_exception=False)
        return None if file is None else str(file.path)

    # Set, since a class of our own would make gradio write a file beside this one.
    component.async_move_resource_to_block_cache, component.preprocess = move_file, path_of
    return component


def read_upload(file: str | None, negative: bool = False) -> Picture:
    """What was uploaded, or its negative; messages call it by its own name, not by where it lies here.

    Raises:
        ImageError: it cannot be used.
        InputError: nothing was.
    """
    if file is None:
        raise InputError("there is no image yet: choose a photograph, or draw")
    try:
        picture = load_image(file)
    except ImageError as e:
        raise ImageError(str(e).replace(file, Path(file).name)) from e
    return replace(picture, image=ImageOps.invert(picture.image)) if negative else picture


def drawing_of(file: str | None) -> Picture:
    """What was drawn, on black.

    Raises:
        InputError: nothing.
    """
    drawn = None if file is None else load_image(file, "drawing", background=(0, 0, 0))
    if drawn is None or not np.ptp(np.asarray(drawn.image)):
        raise InputError("nothing is drawn yet: draw something, or choose a photograph")
    return drawn


@contextmanager
def sentences() -> Iterator[None]:
    """A user's mistake is a sentence on the page, and so is a lack of memory."""
    try:
        yield
    except InputError as e:  # escaped, since gradio shows it as HTML
        raise gr.Error(html.escape(str(e), quote=False), duration=None, print_exception=False) from e
    except (MemoryError, RuntimeError) as e:
        if out_of_memory(e):
            reason = html.escape(one_line(e), quote=False)
            raise gr.Error(f"memory does not suffice ({reason}): take fewer draws or labels") from e
        raise


def refuse_long_text(*texts: str | None) -> None:
    """Complain of what the page's own fields would not have taken; a program can send more.

    Raises:
        InputError: a text of more than `MAX_TEXT` characters.
    """
    for text in texts:
        if text is not None and len(text) > MAX_TEXT:
            raise InputError(f"a text of {len(text):,} characters is too long here: {MAX_TEXT:,} at most")


def refuse_long_work(what: str, texts: Sequence[str], draws: int) -> None:
    """Complain of work that would keep others waiting.

    Raises:
        InputError: too many texts at so many draws.
    """
    if len(texts) * draws > MAX_PAIRS:
        raise InputError(f"{len(texts):,} {what} at {draws} draws are too many here: {MAX_PAIRS:,} in all at most")
