"""Is a diffusion model that was trained to classify a discriminative classifier in disguise? Accuracy under shift.

    python benchmarks/disguise.py FASHION_MNIST OUT.json fashion fashion-fast resnet/

On images that `make train-fashion` holds out, as they are and changed in ways that no model was trained with. A model
is read as its folder says, or as in `FOLDER@fixed:8`; a folder of `baseline supervised` in one pass.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.baselines.hub import kind_of
from diffusion_classifier.baselines.supervised import Supervised
from diffusion_classifier.metrics import share_interval
from diffusion_classifier.training.data import load_labelled_images
from diffusion_classifier.zoo import FASHION

HELD_OUT, SEED = 5000, 0  # of `make train-fashion`


def noise(image: Image.Image, rng: np.random.Generator, size: float) -> Image.Image:
    """Normal, of a size in shares of the whole range."""
    pixels = np.asarray(image) + 255 * size * rng.standard_normal((image.height, image.width))
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def occluded(image: Image.Image, rng: np.random.Generator, edge: int) -> Image.Image:
    """A grey square somewhere."""
    x, y = (int(i) for i in rng.integers(0, image.width - edge + 1, 2))
    shown = image.copy()
    shown.paste(128, (x, y, x + edge, y + edge))
    return shown


SHIFTS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "none": lambda image, _: image,
    **{f"noise {s}": lambda image, rng, s=s: noise(image, rng, s) for s in (0.1, 0.2, 0.4)},
    **{f"blur {s}": lambda image, _, s=s: image.filter(ImageFilter.GaussianBlur(s)) for s in (1, 2)},
    **{f"dimmed to {s}": lambda image, _, s=s: image.point(lambda v, s=s: round(v * s)) for s in (0.5, 0.25)},
    **{f"occluded {s}": lambda image, rng, s=s: occluded(image, rng, s) for s in (8, 12)},
    **{f"turned {s}°": lambda image, _, s=s: image.rotate(s, Image.Resampling.BILINEAR) for s in (15, 30)},
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "inverted": lambda image, _: ImageOps.invert(image),
}


def chosen_by(model: str, images: list[Image.Image]) -> torch.Tensor:
    """Class indices (M,)."""
    source, _, strategy = model.partition("@")
    if kind_of(source) == "supervised":
        score = Supervised.from_pretrained(source).scorer(FASHION)
        return torch.stack([score(image.convert("RGB"), range(len(FASHION))) for image in images]).argmax(1)
    classifier = DiffusionClassifier.from_pretrained(source)
    results = classifier.classify(images, strategy=strategy or None)
    return torch.tensor([FASHION.index(r.label) for r in results])


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("models", nargs="+")
parser.add_argument("--images", type=int, default=1000)
options = parser.parse_args()

_, held_out = load_labelled_images(options.data, class_names=FASHION).split(HELD_OUT, SEED)
rows = torch.arange(options.images) * len(held_out) // options.images
truth = held_out.labels[rows]
results = {}
for shift, change in SHIFTS.items():
    images = [
        change(Image.fromarray(held_out.images[i, 0].numpy()), np.random.default_rng((0, i))) for i in rows.tolist()
    ]
    results[shift] = {m: share_interval(chosen_by(m, images) == truth) for m in options.models}
    print(shift, json.dumps(results[shift]), flush=True)
options.out.write_text(json.dumps(results, indent=1))
