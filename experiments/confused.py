"""Fine-tune a model on its two most confusable classes with a few images, and measure gains and costs.

    python experiments/confused.py FASHION_MNIST OUT fashion
    python experiments/confused.py FASHION_MNIST OUT scenes --joint 0 0.3 --test

LoRA weights are trained on images that the model was not trained on, once per weight of the cross-entropy. Weight 0
means the denoising error alone. Measured on other such images, or with --test on test images:

- accuracy on images of the two classes among these two,
- accuracy among all classes,
- the denoising error over all classes,
- the Fréchet distance between samples and images.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from common import denoising_error, draw_samples, evenly_spaced, load, load_finetuned, sample_distance, scene_images

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
    """Return images for fine-tuning, which the model was not trained on, and images for evaluation."""
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
parser.add_argument("--images", type=int, default=1000, help="images of all classes to evaluate (default: %(default)s)")
parser.add_argument("--test", action="store_true")
parser.add_argument("--drawn", type=int, default=500, help="samples for the Fréchet distance (default: %(default)s)")
parser.add_argument(
    "--samples", type=Path, help="write a figure of samples of every model to this file (default: none)"
)
options = parser.parse_args()

training, measured = images(options.data, options.model, options.test)
text_to_image = load_denoiser(options.model).class_names is None
names = list(training.class_names)
captions = fill_template(TEMPLATE, names) if text_to_image else names
some = confusable_images(training, options.classes, captions, options.number, 0)
drawn = []
before = None
for weight in [None, *options.joint]:
    folder = options.out / f"{options.model}-{weight}-{options.rank}-{options.epochs}-{options.learning_rate}"
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "joint": weight, "rivals": 3}
    denoiser = (
        load_denoiser(options.model)
        if weight is None
        else load_finetuned(options.model, some, folder, options.rank, **settings)
    )
    classifier = DiffusionClassifier(denoiser, batch_size=160)
    template = TEMPLATE if text_to_image else None
    correct = {
        "two": correctness(classifier, images_of_classes(measured, options.classes), options.classes, template),
        "all": correctness(classifier, evenly_spaced(measured, options.images), names, template),
    }
    before = before or correct
    row = {"joint": weight, "denoising": denoising_error(classifier, evenly_spaced(measured, 200), captions)}
    row["samples"] = sample_distance(denoiser, evenly_spaced(measured, options.drawn), captions)
    row |= {g.name: asdict(g) for g in gains(before, correct)}
    print(json.dumps(row), flush=True)
    drawn.append(("pretrained" if weight is None else f"λ {weight:g}", denoiser))
if options.samples:
    draw_samples(drawn, captions, options.samples)
