"""Sample a labelled data set from a diffusion model, for the training of another classifier.

This is the paper's synthetic-data baseline (section 5.1, appendix D.5): class names in random templates, sampled with
the defaults of the pipeline.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.prompts import fill_template
from ..denoisers.base import Denoiser
from ..denoisers.class_conditional import ClassConditional
from ..denoisers.sampling import BATCH, draw_images
from ..errors import InputError
from ..files import write_durably

SETTINGS = "synthetic.json"


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings of a sampled data set.

    Args:
        classes: names of the classes.
        per_class: number of images per class.
        templates: prompt templates, one of which is drawn at random for each image. None for class-conditional models.
        steps: number of sampling steps.
        guidance: see `sampling.draw_images`.
        seed: seed of noise and templates.

    Raises:
        InputError: fewer than two classes, no image per class, or a template without a place for the class.
    """

    classes: Sequence[str]
    per_class: int
    templates: Sequence[str] = ()
    steps: int = 50
    guidance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or self.per_class < 1:
            raise InputError(
                f"at least two classes and one image of each are needed; got {len(self.classes)} and {self.per_class}"
            )
        for template in self.templates:
            fill_template(template, self.classes)

    def __len__(self) -> int:
        return len(self.classes) * self.per_class

    def image(self, i: int) -> tuple[str, str, int]:
        """Return class, prompt and seed of image i. Classes alternate, so that every prefix is balanced."""
        k = i % len(self.classes)
        rng = np.random.default_rng((self.seed, i))
        prompt = self.classes[k]
        if self.templates:
            (prompt,) = fill_template(self.templates[int(rng.integers(len(self.templates)))], [prompt])
        return self.classes[k], prompt, int(rng.integers(2**63))


def draw_data_set(denoiser: Denoiser, config: SyntheticConfig, folder: Path) -> Iterator[Path]:
    """Sample images into a folder with a metadata.csv, or resume doing so. Yields each new file.

    Raises:
        InputError: the folder holds something else, or cannot be written; as `sampling.draw_images`.
    """
    settings = json.dumps(
        {**vars(config), "model": denoiser.fingerprint(), "image_size": denoiser.image_size}, indent=2, default=list
    )
    file = folder / SETTINGS
    try:
        if not file.exists():
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder} is there already: choose another --out, or remove it")
        elif file.read_text("utf-8") != settings:
            raise InputError(f"{folder} holds images of other settings, see {file}: choose another --out")
        if isinstance(denoiser, ClassConditional):
            denoiser.condition(config.classes)  # to raise its errors
        folder.mkdir(parents=True, exist_ok=True)
        todo = [i for i in range(len(config)) if not (folder / _name(i)).exists()]
        for start in range(0, len(todo), BATCH):
            some = todo[start : start + BATCH]
            _, prompts, seeds = zip(*(config.image(i) for i in some), strict=True)
            images = list(draw_images(denoiser, prompts, seeds, steps=config.steps, guidance=config.guidance))
            if not file.exists():  # a run that fails before its first image does not claim the folder
                write_durably(file, settings)
            for i, image in zip(some, images, strict=True):
                unfinished = folder / f"{_name(i)}.part"
                image.save(unfinished, "PNG")
                yield unfinished.replace(folder / _name(i))
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
            rows = ((_name(i), config.image(i)[0]) for i in range(len(config)))
            csv.writer(table).writerows([("file_name", "label"), *rows])
    except OSError as e:
        raise InputError(f"{folder} cannot be written: {e}") from e


def _name(i: int) -> str:
    return f"{i:06d}.png"
