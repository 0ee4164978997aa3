"""Measure whether classifiers rely on a mark that reveals the class of most training images.

    python experiments/shortcuts.py train FASHION_MNIST OUT       # each for the same FLOPs; resumes
    python experiments/shortcuts.py measure FASHION_MNIST OUT     # on held-out images: accuracy as JSON lines

The mark is a bright 3×3 square at one of ten places along the edges, one place per class. In 95% of the training images
it is at the place of the true class, otherwise at that of another class. Held-out images have it at the place of the
true class ("true"), nowhere ("none"), or at that of another class ("false").
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from common import EARLY, Config, evenly_spaced, joint, late, load, pictures, predict, train_for
from torch import Tensor

from diffusion_classifier.metrics import share_interval
from diffusion_classifier.training import SupervisedConfig, TrainingImages

KINDS: dict[str, tuple[Config, str]] = {
    "diffusion": (EARLY, "sequential:100/0.01"),
    "diffusion, joint": (joint(late(2)), "fixed:8"),
    "ResNet-18": (SupervisedConfig(augment="none"), ""),
}
PLACES = [(y, x) for y in (0, 25) for x in (0, 6, 12, 18, 25)]
TRUE_IN_TRAINING = 0.95


def marked(images: TrainingImages, classes: Tensor) -> TrainingImages:
    """Return the images with the marks of these classes."""
    changed = images.images.clone()
    for image, k in zip(changed, classes.tolist(), strict=True):
        y, x = PLACES[k]
        image[:, y : y + 3, x : x + 3] = 255
    return replace(images, images=changed)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=("train", "measure"))
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--flops", type=float, default=1e14)
parser.add_argument("--images", type=int, default=1000)
options = parser.parse_args()
training, held_out = load(options.data)
generator = torch.Generator().manual_seed(0)
others = (training.labels + torch.randint(1, 10, training.labels.shape, generator=generator)) % 10
with_true_mark = torch.rand(len(training), generator=generator) < TRUE_IN_TRAINING
held_out = evenly_spaced(held_out, options.images)
false = (held_out.labels + torch.randint(1, 10, held_out.labels.shape, generator=generator)) % 10
tests = {"true": marked(held_out, held_out.labels), "none": held_out, "false": marked(held_out, false)}
for name, (config, strategy) in KINDS.items():
    folder = options.out / name.replace(", ", "-")
    if options.what == "train":
        train_for(marked(training, torch.where(with_true_mark, training.labels, others)), config, options.flops, folder)
        continue
    model = f"{folder}@{strategy}" if strategy else str(folder)
    for mark, images in tests.items():
        predictions = predict(model, pictures(images))
        row = {"model": name, "mark": mark, "accuracy": share_interval(predictions == images.labels)}
        if mark == "false":
            row["follows the mark"] = share_interval(predictions == false)
        print(json.dumps(row), flush=True)
