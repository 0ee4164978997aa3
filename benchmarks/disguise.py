"""Is a diffusion model that was trained to classify a discriminative classifier in disguise? Accuracy under shift.

    python benchmarks/disguise.py FASHION_MNIST OUT.json fashion fashion-fast resnet/

On images that `make train-fashion` holds out, as they are and changed as no model was trained with (`shifts`). A model
is read as its folder says, or as in `FOLDER@fixed:8`; a folder of `baseline supervised` in one pass.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.baselines.hub import kind_of
from diffusion_classifier.baselines.supervised import Supervised
from diffusion_classifier.metrics import share_interval
from diffusion_classifier.scenes import HELD_OUT
from diffusion_classifier.shifts import SHIFTS, Shift
from diffusion_classifier.training.data import load_labelled_images
from diffusion_classifier.zoo import FASHION


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
parser.add_argument("--severities", type=int, nargs="+", default=[3])
options = parser.parse_args()

_, held_out = load_labelled_images(options.data, class_names=FASHION).split(HELD_OUT, seed=0)
rows = torch.arange(options.images) * len(held_out) // options.images
truth = held_out.labels[rows]
results: dict[str, dict[str, list[float]]] = {}
for shift in [None, *(Shift(name, severity) for name in SHIFTS for severity in options.severities)]:
    images = [Image.fromarray(held_out.images[i, 0].numpy()) for i in rows]
    if shift is not None:
        images = [shift(image, str(i)) for image, i in zip(images, rows.tolist(), strict=True)]
    results[str(shift)] = {m: share_interval(chosen_by(m, images) == truth) for m in options.models}
    print(shift, json.dumps(results[str(shift)]), flush=True)
options.out.write_text(json.dumps(results, indent=1))
