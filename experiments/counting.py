"""Fine-tune `scenes` on the two counts that it confuses most, with a few captioned images.

    python experiments/counting.py FASHION_MNIST OUT            # on validation photographs
    python experiments/counting.py FASHION_MNIST OUT --test --joint 0.1

The pair of counts is the one with most mistakes on validation photographs. Training images show these counts, with each
thing in its own quarter, or one thing anywhere. Each has a true and a false caption. LoRA weights are trained once per
weight of the cross-entropy; weight 0 means the denoising error alone. Measured:

- accuracy between the two counts on their images,
- accuracy among four counts, with things in quarters,
- accuracy among four counts for one thing anywhere,
- accuracy on the noun of one thing,
- the denoising error,
- the Fréchet distance between samples and images.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import cast

import torch
from common import denoising_error, draw_samples, load_finetuned, pictures, sample_distance, scene_images
from torch import Tensor

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.data import NUMBERS, CaptionedSource, ImageSource, Thing, load_image, phrase
from diffusion_classifier.metrics import difference_interval, share_interval
from diffusion_classifier.search import CaptionScore, ScoreOptions
from diffusion_classifier.tasks import open_counting
from diffusion_classifier.training import TrainingCaptions, TrainingImages, correctness, load_contrasted_images

PAIRS = list(combinations(range(len(NUMBERS)), 2))
WHERE: ScoreOptions = {"timesteps": "even:0.75-1", "weights": "training", "draws": 32, "pairs": True}
"""Timesteps and weights at which `scenes` separates arrangements; see its model card."""


def count_captions(kind: int) -> tuple[str, ...]:
    """Return the captions for one to four things of a kind."""
    return tuple(phrase(Thing(kind, 0), count=n + 1) for n in range(len(NUMBERS)))


def images_of_pair(source: CaptionedSource, rows: Sequence[int], pair: tuple[int, int]) -> TrainingCaptions:
    """Return images of two counts, each with the caption of the other count as its negative.

    With all other counts as negatives, the model learned that counts outside the pair are never true. Accuracy on
    three and four things dropped from nearly 100% to about one in three.
    """
    images = load_contrasted_images(source).images[list(rows)]
    own = [(source.captions[i], source.truth[i]) for i in rows]
    contrasts = tuple((captions[sum(pair) - true],) for captions, true in own)
    return TrainingCaptions(images, tuple(captions[true] for captions, true in own), contrasts)


def add_single_things(a: TrainingCaptions, b: TrainingImages, pair: tuple[int, int]) -> TrainingCaptions:
    """Add photographs of one thing each. Their negatives are captions of the larger count of the pair."""
    own = [count_captions(kind) for kind in b.labels.tolist()]
    captions, contrasts = tuple(c[0] for c in own), tuple((c[max(pair)],) for c in own)
    return TrainingCaptions(torch.cat([a.images, b.images]), a.captions + captions, a.contrasts + contrasts)


def caption_errors(
    classifier: DiffusionClassifier, images: Sequence[ImageSource], captions: Sequence[Sequence[str]]
) -> Tensor:
    """Return the error of each caption of each image, (M, C)."""
    columns = []
    for column in zip(*captions, strict=True):
        scores = classifier.score(images, column, **WHERE)
        columns.append([score.error for score in cast("list[CaptionScore]", scores)])
    return torch.tensor(columns).T


def images_and_captions(source: CaptionedSource, rows: Sequence[int]) -> tuple[list[ImageSource], list[Sequence[str]]]:
    """Return the images and captions of these rows."""
    return [load_image(source.read(i)).image for i in rows], [source.captions[i] for i in rows]


def most_confused(classifier: DiffusionClassifier, source: CaptionedSource, number: int) -> tuple[int, int]:
    """Return the indices of the two most confused counts among the last `number` images."""
    rows = range(max(0, len(source) - number), len(source))
    truth = torch.tensor(source.truth)[rows.start :]
    predictions = caption_errors(classifier, *images_and_captions(source, rows)).argmin(1)
    confusions = [
        (int(((truth == a) & (predictions == b) | (truth == b) & (predictions == a)).sum()), a, b) for a, b in PAIRS
    ]
    print(json.dumps({"confusions": {f"{a + 1}, {b + 1}": n for n, a, b in confusions}}), flush=True)
    return max(confusions)[1:]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--joint", nargs="+", type=float, default=[0.0, 0.02])
parser.add_argument("--number", type=int, default=175, help="training images (default: %(default)s)")
parser.add_argument(
    "--plain",
    type=int,
    default=75,
    help="training images that show one thing anywhere, included in --number (default: %(default)s)",
)
parser.add_argument("--epochs", type=float, default=20.0)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--images", type=int, default=200, help="images per measurement (default: %(default)s)")
parser.add_argument("--test", action="store_true")
parser.add_argument("--drawn", type=int, default=500, help="samples for the Fréchet distance (default: %(default)s)")
parser.add_argument(
    "--samples", type=Path, help="write a figure of samples of every model to this file (default: none)"
)
options = parser.parse_args()

unseen, others = open_counting(options.data, "validation"), scene_images(options.data, "validation", 1000)
pretrained = DiffusionClassifier(load_denoiser("scenes"), batch_size=160)
pair = most_confused(pretrained, unseen, 200)
of_pair = torch.isin(torch.tensor(unseen.truth), torch.tensor(pair)).nonzero()[: options.number - options.plain, 0]
training = images_of_pair(unseen, of_pair.tolist(), pair)
if options.plain:
    training = add_single_things(training, others.take(torch.arange(len(others) - options.plain, len(others))), pair)
split = "test" if options.test else "validation"
source, plain = open_counting(options.data, split), scene_images(options.data, split, options.images)
to_draw = scene_images(options.data, split, options.drawn)
# The first validation rows are training images.
rows = range(max(len(source) - options.images, 0 if options.test else int(of_pair[-1]) + 1), len(source))
several, choices = images_and_captions(source, rows)
truth = torch.tensor([source.truth[i] for i in rows])
in_pair = torch.isin(truth, torch.tensor(pair))
anywhere = [count_captions(kind) for kind in plain.labels.tolist()]
captions = [f"a {name}" for name in plain.class_names]
before: dict[str, Tensor] = {}
drawn = []
for weight in [None, *options.joint]:
    name_parts = (weight, options.rank, options.epochs, options.learning_rate, options.number, options.plain)
    folder = options.out / "-".join(map(str, name_parts))
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "joint": weight, "rivals": 0}
    if weight is None:
        classifier = pretrained
    else:
        classifier = DiffusionClassifier(
            load_finetuned("scenes", training, folder, options.rank, **settings), batch_size=160
        )
    row: dict[str, object] = {"joint": weight, "denoising": denoising_error(classifier, plain, captions)}
    row["samples"] = sample_distance(classifier.denoiser, to_draw, captions)
    errors = caption_errors(classifier, several, choices)
    of_two = torch.tensor(pair)[errors[:, pair].argmin(1)]
    counted = errors.argmin(1) == truth
    correct = {
        "pair": (of_two == truth)[in_pair],
        "counted": counted,
        "one, anywhere": caption_errors(classifier, pictures(plain), anywhere).argmin(1) == 0,
        "nouns": correctness(classifier, plain, plain.class_names, "a {}"),
    }
    before = before or correct
    for measure, hits in correct.items():
        row[measure] = {"accuracy": share_interval(hits), "gain": difference_interval(hits, before[measure])}
    row["by number"] = {n + 1: float(counted[truth == n].float().mean()) for n in range(4)}
    print(json.dumps(row), flush=True)
    drawn.append(("pretrained" if weight is None else f"λ {weight:g}", classifier.denoiser))
if options.samples:
    draw_samples(drawn, ["a bag", "two bags", "three bags", "four bags", *captions[:4]], options.samples)
