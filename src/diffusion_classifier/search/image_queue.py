"""Images decoded ahead of the search, and matched with their results afterwards."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import ImageError, ImageSource, Picture, load_image
from .jobs import Cost, ImageJob, ScoredImage

_DECODED_AHEAD = 8
"""Number of images decoded before a batch has room for them; few, because each may take megabytes."""

_ONE = (str, bytes, os.PathLike, Image.Image, np.ndarray, Tensor, Picture)


def is_one(images: ImageSource | Iterable[ImageSource]) -> bool:
    """Whether this is a single image."""
    return isinstance(images, _ONE)


def as_many(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """Return a single image as a list."""
    return [images] if isinstance(images, _ONE) else images


def name_of(position: int, source: ImageSource) -> str:
    """Return the name of an image: its path, or its position if it has none."""
    return str(source) if isinstance(source, str | os.PathLike) else f"image {position}"


class ImageQueue:
    """Turns images into jobs, and scored jobs into named results. An image that cannot be used fails alone.

    Args:
        images: one image or several, taken one by one.
        as_job: makes a job from a name, which is the position of the image, and its picture.
        num_classes: K.
    """

    def __init__(
        self,
        images: ImageSource | Iterable[ImageSource],
        as_job: Callable[[str, Picture], ImageJob],
        num_classes: int,
    ) -> None:
        self._images = images
        self._as_job = as_job
        self._num_classes = num_classes
        self._taken: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._unusable: list[ScoredImage] = []

    def jobs(self) -> Iterator[ImageJob]:
        """Yield a job for each usable image. A thread decodes images while earlier ones are in use."""
        return _prefetch(self._jobs(), _DECODED_AHEAD)

    def _jobs(self) -> Iterator[ImageJob]:
        for i, source in enumerate(as_many(self._images)):
            name = name_of(i, source)
            try:
                picture = load_image(source, name)
                job = self._as_job(str(i), picture)
            except ImageError as e:
                self._taken[str(i)] = name, ()
                none, reason = torch.empty(self._num_classes, 0), str(e).removeprefix(f"{name}: ")
                active = torch.zeros(self._num_classes).bool()
                self._unusable.append(ScoredImage(str(i), none, active, none[0], Cost(), reason))
            else:
                self._taken[str(i)] = name, picture.notes
                yield job

    def results(self, scores: Iterable[ScoredImage]) -> Iterator[tuple[int, ScoredImage, tuple[str, ...]]]:
        """Yield position, scored image and notes of every image, including those that cannot be used."""
        for scored in chain(scores, [None]):
            while self._unusable:
                yield self._named(self._unusable.pop(0))
            if scored is not None:
                yield self._named(scored)

    def _named(self, scored: ScoredImage) -> tuple[int, ScoredImage, tuple[str, ...]]:
        name, notes = self._taken.pop(scored.name)
        return int(scored.name), replace(scored, name=name), notes


def _prefetch(items: Iterable[ImageJob], ahead: int) -> Iterator[ImageJob]:
    """Yield the items in order, each made by another thread while earlier ones are in use."""
    source = iter(items)
    pool = ThreadPoolExecutor(1, "decode")
    try:
        coming = deque(pool.submit(next, source, None) for _ in range(ahead))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, source, None))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
