"""The two numbers of things that `scenes` confuses most, taught to it by a few captioned images.

    python experiments/counting.py FASHION_MNIST OUT            # chosen by photographs of validation
    python experiments/counting.py FASHION_MNIST OUT --test --joint 0.1

The pair is that of the most mistakes on photographs of validation. LoRA weights are trained on images of these numbers
of things, each in a quarter of its own, and of one thing anywhere, with true and false captions, by the denoising error
(0) and with each weight of the cross-entropy beside it. Measured: which of the two is true of their images; which of
four numbers of images of all, in quarters, and of one thing anywhere; the noun of one thing; the denoising error;
how far samples are from images (Fréchet distance).
"""

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import cast

import torch
from common import denoising_error, draw_samples, pictures, sample_distance, scene_images, tuned
from torch import Tensor

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.data import NUMBERS, CaptionedSource, ImageSource, Thing, load_image, phrase
from diffusion_classifier.metrics import difference_interval, share_interval
from diffusion_classifier.search import CaptionScore, ScoreOptions
from diffusion_classifier.tasks import open_counting
from diffusion_classifier.training import TrainingCaptions, TrainingImages, correctness, load_contrasted_images

PAIRS = list(combinations(range(len(NUMBERS)), 2))
WHERE: ScoreOptions = {"timesteps": "even:0.75-1", "weights": "training", "draws": 32, "pairs": True}
"""Where `scenes` tells arrangements apart; see its card."""


def numbered(kind: int) -> tuple[str, ...]:
    """One to four of a kind."""
    return tuple(phrase(Thing(kind, 0), count=n + 1) for n in range(len(NUMBERS)))


def of_numbers(source: CaptionedSource, rows: Sequence[int], pair: tuple[int, int]) -> TrainingCaptions:
    """Images of two numbers of things, each with the caption of the other, which is false.

    Were those of all numbers the false ones, it would be learned that the others never are true: of three and four
    things one in three was counted rightly after that, where it had been nearly all.
    """
    images = load_contrasted_images(source).images[list(rows)]
    own = [(source.captions[i], source.truth[i]) for i in rows]
    contrasts = tuple((captions[sum(pair) - true],) for captions, true in own)
    return TrainingCaptions(images, tuple(captions[true] for captions, true in own), contrasts)


def joined(a: TrainingCaptions, b: TrainingImages, pair: tuple[int, int]) -> TrainingCaptions:
    """With plain photographs of one thing each; that there are more, as in the pair, is false."""
    own = [numbered(kind) for kind in b.labels.tolist()]
    captions, contrasts = tuple(c[0] for c in own), tuple((c[max(pair)],) for c in own)
    return TrainingCaptions(torch.cat([a.images, b.images]), a.captions + captions, a.contrasts + contrasts)


def errors_of(
    classifier: DiffusionClassifier, images: Sequence[ImageSource], captions: Sequence[Sequence[str]]
) -> Tensor:
    """Of each caption of each image, (M, C)."""
    columns = []
    for column in zip(*captions, strict=True):
        scores = classifier.score(images, column, **WHERE)
        columns.append([score.error for score in cast("list[CaptionScore]", scores)])
    return torch.tensor(columns).T


def images_and_captions(source: CaptionedSource, rows: Sequence[int]) -> tuple[list[ImageSource], list[Sequence[str]]]:
    """Those of these rows."""
    return [load_image(source.read(i)).image for i in rows], [source.captions[i] for i in rows]


def most_confused(classifier: DiffusionClassifier, source: CaptionedSource, number: int) -> tuple[int, int]:
    """The two numbers most often taken for each other, of the last images; of all if there are fewer."""
    rows = range(max(0, len(source) - number), len(source))
    truth = torch.tensor(source.truth)[rows.start :]
    answers = errors_of(classifier, *images_and_captions(source, rows)).argmin(1)
    taken = [(int(((truth == a) & (answers == b) | (truth == b) & (answers == a)).sum()), a, b) for a, b in PAIRS]
    print(json.dumps({"taken for each other": {f"{a + 1}, {b + 1}": n for n, a, b in taken}}), flush=True)
    return max(taken)[1:]


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--joint", nargs="+", type=float, default=[0.0, 0.02])
parser.add_argument("--number", type=int, default=175, help="images to learn from")
parser.add_argument("--plain", type=int, default=75, help="of these, so many of one thing anywhere")
parser.add_argument("--epochs", type=float, default=20.0)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--images", type=int, default=200, help="of each measurement")
parser.add_argument("--test", action="store_true")
parser.add_argument("--drawn", type=int, default=500, help="samples whose distance from images is measured")
parser.add_argument("--samples", type=Path, help="picture of samples of every model, to write")
options = parser.parse_args()

unseen, others = open_counting(options.data, "validation"), scene_images(options.data, "validation", 1000)
as_it_is = DiffusionClassifier(load_denoiser("scenes"), batch_size=160)
pair = most_confused(as_it_is, unseen, 200)
of_pair = torch.isin(torch.tensor(unseen.truth), torch.tensor(pair)).nonzero()[: options.number - options.plain, 0]
training = of_numbers(unseen, of_pair.tolist(), pair)
if options.plain:
    training = joined(training, others.take(torch.arange(len(others) - options.plain, len(others))), pair)
split = "test" if options.test else "validation"
source, plain = open_counting(options.data, split), scene_images(options.data, split, options.images)
to_draw = scene_images(options.data, split, options.drawn)
# What is trained on are the first of them.
rows = range(max(len(source) - options.images, 0 if options.test else int(of_pair[-1]) + 1), len(source))
several, choices = images_and_captions(source, rows)
truth = torch.tensor([source.truth[i] for i in rows])
asked = torch.isin(truth, torch.tensor(pair))
anywhere = [numbered(kind) for kind in plain.labels.tolist()]
captions = [f"a {name}" for name in plain.class_names]
before: dict[str, Tensor] = {}
drawn = []
for weight in [None, *options.joint]:
    settled = (weight, options.rank, options.epochs, options.learning_rate, options.number, options.plain)
    folder = options.out / "-".join(map(str, settled))
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate, "joint": weight, "rivals": 0}
    if weight is None:
        classifier = as_it_is
    else:
        classifier = DiffusionClassifier(tuned("scenes", training, folder, options.rank, **settings), batch_size=160)
    row: dict[str, object] = {"joint": weight, "denoising": denoising_error(classifier, plain, captions)}
    row["samples"] = sample_distance(classifier.denoiser, to_draw, captions)
    errors = errors_of(classifier, several, choices)
    of_two = torch.tensor(pair)[errors[:, pair].argmin(1)]
    counted = errors.argmin(1) == truth
    right = {
        "pair": (of_two == truth)[asked],
        "counted": counted,
        "one, anywhere": errors_of(classifier, pictures(plain), anywhere).argmin(1) == 0,
        "nouns": correctness(classifier, plain, plain.class_names, "a {}"),
    }
    before = before or right
    for what, answers in right.items():
        row[what] = {"accuracy": share_interval(answers), "gain": difference_interval(answers, before[what])}
    row["by number"] = {n + 1: float(counted[truth == n].float().mean()) for n in range(4)}
    print(json.dumps(row), flush=True)
    drawn.append(("as it is" if weight is None else f"λ {weight:g}", classifier.denoiser))
if options.samples:
    draw_samples(drawn, ["a bag", "two bags", "three bags", "four bags", *captions[:4]], options.samples)
