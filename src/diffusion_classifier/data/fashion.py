"""Fashion-MNIST: its class names, and the bundled sample of its test images."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib import resources

import pyarrow.parquet as pq
from PIL import Image

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
"""Class names of Fashion-MNIST, in the order of its labels."""


@dataclass(frozen=True)
class Sample:
    """One bundled photograph.

    Args:
        image: Mode L, 28×28.
        label: Class name.
        index: Position in the test set of Fashion-MNIST.
    """

    image: Image.Image
    label: str
    index: int


def load_sample(limit: int | None = None) -> list[Sample]:
    """Return the 1,000 bundled test images of Fashion-MNIST, 100 per class, in the order of the test set.

    With `limit`, return only the first of them.

    Copyright 2017 Zalando SE, MIT licence.
    """
    path = resources.files("diffusion_classifier") / "zoo" / "fashion_sample.parquet"
    with resources.as_file(path) as file:
        rows = pq.read_table(file).slice(0, limit).to_pylist()
    return [Sample(Image.open(io.BytesIO(row["image"]["bytes"])), row["label"], row["index"]) for row in rows]
