"""What `scenes` confuses most, how many of a thing there are, taught to it by a few captioned images.

    python benchmarks/counting.py FASHION_MNIST OUT            # chosen by photographs of validation
    python benchmarks/counting.py FASHION_MNIST OUT --test --joint 0.1

LoRA weights trained on images of one to four things with true and false captions, by the denoising error (0) and with
each weight of the cross-entropy beside it. Measured: which of four numbers is true; the noun of one thing alone; the
denoising error.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from common import denoising_error, draw_samples, scene_images, tuned

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.caption_sources import CaptionSource
from diffusion_classifier.images import load_image
from diffusion_classifier.metrics import difference_interval, share_interval
from diffusion_classifier.tasks.scenes import open_counting
from diffusion_classifier.training.confused import are_right
from diffusion_classifier.training.data import load_contrasted_images

WHERE = {"timesteps": "even:0.75-1", "weights": "training", "draws": 32}
"""Where `scenes` tells arrangements apart; see its card."""


def taken(source: CaptionSource, rows: Sequence[int]) -> CaptionSource:
    """These images of it."""
    some = {name: tuple(getattr(source, name)[i] for i in rows) for name in ("ids", "captions", "truth", "tags")}
    return replace(source, **some, read=lambda i: source.read(rows[i]))


def told_right(classifier: DiffusionClassifier, source: CaptionSource) -> torch.Tensor:
    """Whether the caption with the least error is the true one, (M,), bool."""
    images = [load_image(source.read(i)).image for i in range(len(source))]
    asked = zip(*source.captions, strict=True)
    errors = [[s.error for s in classifier.score(images, list(c), pairs=True, **WHERE)] for c in asked]
    return torch.tensor(errors).argmin(0) == torch.tensor(source.truth)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--joint", nargs="+", type=float, default=[0.0, 0.1, 1.0])
parser.add_argument("--number", type=int, default=175)
parser.add_argument("--epochs", type=float, default=20.0)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--images", type=int, default=200, help="of each measurement")
parser.add_argument("--test", action="store_true")
parser.add_argument("--samples", type=Path, help="picture of samples of every model, to write")
options = parser.parse_args()

unseen = open_counting(options.data, "validation")
training = load_contrasted_images(taken(unseen, range(options.number)))
split = "test" if options.test else "validation"
counted = open_counting(options.data, "test") if options.test else taken(unseen, range(options.number, len(unseen)))
counted = taken(counted, range(min(options.images, len(counted))))
plain = scene_images(options.data, split, options.images)
captions = [f"a {name}" for name in plain.class_names]
before: dict[str, torch.Tensor] = {}
drawn = []
for weight in [None, *options.joint]:
    folder = options.out / f"{weight}-{options.rank}-{options.epochs}-{options.learning_rate}"
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "joint": weight, "rivals": 0}
    denoiser = (
        load_denoiser("scenes") if weight is None else tuned("scenes", training, folder, options.rank, **settings)
    )
    classifier = DiffusionClassifier(denoiser, batch_size=160)
    row: dict[str, object] = {"joint": weight, "denoising": denoising_error(classifier, plain, captions)}
    right = {
        "counted": told_right(classifier, counted),
        "nouns": are_right(classifier, plain, plain.class_names, "a {}"),
    }
    before = before or right
    for what, answers in right.items():
        row[what] = {"accuracy": share_interval(answers), "gain": difference_interval(answers, before[what])}
    truth = torch.tensor(counted.truth)
    row["by number"] = {n + 1: float(right["counted"][truth == n].float().mean()) for n in range(4)}
    print(json.dumps(row), flush=True)
    drawn.append(("as it is" if weight is None else f"λ {weight:g}", denoiser))
if options.samples:
    draw_samples(drawn, ["a bag", "two bags", "three bags", "four bags", *captions[:4]], options.samples)
