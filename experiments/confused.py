"""The two classes that a model confuses most, taught to it by a few images: what that gains, and costs.

    python experiments/confused.py FASHION_MNIST OUT fashion
    python experiments/confused.py FASHION_MNIST OUT scenes --joint 0 0.3 --test

Trained on images that the model has not seen, with each weight of the cross-entropy beside the denoising error (0: the
denoising error alone), and measured on others of them, or with --test on test images: accuracy on the two classes
among the two, on all among all, the denoising error of all, and how far samples are from images (Fréchet distance).
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from common import denoising_error, draw_samples, load, sample_distance, scene_images, spread, tuned

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.data import FASHION, fill_template
from diffusion_classifier.training import (
    TrainingImages,
    confusable_images,
    correctness,
    gains,
    images_of_classes,
    load_labelled_images,
)

TEMPLATE = "a {}"


def images(data: str, model: str, test: bool) -> tuple[TrainingImages, TrainingImages]:
    """To train on, which the model has not seen, and to measure on."""
    if model == "scenes":
        unseen = scene_images(data, "validation", 5000)
        tested = scene_images(data, "test", 10_000) if test else None
    else:
        unseen = load(data)[1]
        tested = load_labelled_images(data, split="test", class_names=FASHION) if test else None
    training, validation = unseen.split(3000, 0)
    return training, tested or validation


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("model", choices=("fashion", "fashion-fast", "scenes"))
parser.add_argument("--classes", nargs=2, default=["Shirt", "T-shirt/top"])
parser.add_argument("--joint", nargs="+", type=float, default=[0.0, 0.1, 0.3, 1.0])
parser.add_argument("--number", type=int, default=175)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--epochs", type=float, default=10.0)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--images", type=int, default=1000, help="of all classes")
parser.add_argument("--test", action="store_true")
parser.add_argument("--drawn", type=int, default=500, help="samples whose distance from images is measured")
parser.add_argument("--samples", type=Path, help="picture of samples of every model, to write")
options = parser.parse_args()

training, measured = images(options.data, options.model, options.test)
reads = load_denoiser(options.model).class_names is None
names = list(training.class_names)
captions = fill_template(TEMPLATE, names) if reads else names
some = confusable_images(training, options.classes, captions, options.number, 0)
drawn = []
before = None
for weight in [None, *options.joint]:
    folder = options.out / f"{options.model}-{weight}-{options.rank}-{options.epochs}-{options.learning_rate}"
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "joint": weight, "rivals": 3}
    denoiser = (
        load_denoiser(options.model) if weight is None else tuned(options.model, some, folder, options.rank, **settings)
    )
    classifier = DiffusionClassifier(denoiser, batch_size=160)
    template = TEMPLATE if reads else None
    right = {
        "two": correctness(classifier, images_of_classes(measured, options.classes), options.classes, template),
        "all": correctness(classifier, spread(measured, options.images), names, template),
    }
    before = before or right
    row = {"joint": weight, "denoising": denoising_error(classifier, spread(measured, 200), captions)}
    row["samples"] = sample_distance(denoiser, spread(measured, options.drawn), captions)
    row |= {g.name: asdict(g) for g in gains(before, right)}
    print(json.dumps(row), flush=True)
    drawn.append(("as it is" if weight is None else f"λ {weight:g}", denoiser))
if options.samples:
    draw_samples(drawn, captions, options.samples)
