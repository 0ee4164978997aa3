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
"""Classes of Fashion-MNIST, in the order of its labels."""


@dataclass(frozen=True)
class Sample:
    """One bundled photograph.

    Args:
        image: mode L, 28×28.
        label: its class.
        index: its place in the data set that it is from.
    """

    image: Image.Image
    label: str
    index: int


def load_sample(limit: int | None = None) -> list[Sample]:
    """The 1,000 bundled test images of Fashion-MNIST, 100 a class, in the order of the test set; or the first of them.

    Copyright 2017 Zalando SE, MIT licence.
    """
    path = resources.files("diffusion_classifier") / "zoo" / "fashion_sample.parquet"
    with resources.as_file(path) as file:
        rows = pq.read_table(file).slice(0, limit).to_pylist()
    return [Sample(Image.open(io.BytesIO(row["image"]["bytes"])), row["label"], row["index"]) for row in rows]
