"""Measure the cost per image among a hundred classes with late conditioning.

    python experiments/hundred.py train FASHION_MNIST OUT
    python experiments/hundred.py measure FASHION_MNIST OUT

The classes are the ten nouns of the scenes times ten looks; each image is one photograph on a 56×56 canvas. Evaluation
uses validation photographs: plain ones among the ten plain classes, and all among the hundred.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data import NOUNS, UPSIDE_DOWN, anywhere, generator, load_photographs, phrase
from diffusion_classifier.metrics import share_interval
from diffusion_classifier.training import TrainConfig, TrainingImages, train

LOOKS = (
    (), ("dark",), ("bright",), ("small",), ("large",), (UPSIDE_DOWN,), ("small", "dark"), ("small", "bright"),
    ("large", "dark"), ("large", "bright"),
)  # fmt: skip
CONFIG = TrainConfig(
    beta_schedule="squaredcos_cap_v2", patch_size=4, channels=(64, 128), layers=2, head=(32,), head_layers=1,
    joint=0.05, rivals=3, batch_size=32, optimizer="muon", learning_rate=2e-3, warmup=200,
)  # fmt: skip


def pictures(folder: str, split: str, number: int) -> TrainingImages:
    """Return images of the classes in turn, each a random photograph at a random place."""
    photographs = load_photographs(folder, split)
    classes = [(kind, look) for kind in range(len(NOUNS)) for look in LOOKS]
    images: list[np.ndarray] = []
    names: dict[int, str] = {}
    for i in range(number):
        kind, look = classes[i % len(classes)]
        rng = generator(0, i)
        thing = photographs.pick(rng, kind)[0].with_attributes(*look)
        images.append(np.asarray(photographs.render([anywhere(rng, thing)])))
        names.setdefault(i % len(classes), phrase(thing))
    labels = torch.arange(number) % len(classes)
    return TrainingImages(torch.from_numpy(np.stack(images))[:, None], labels, tuple(names.values()))


def measure(data: TrainingImages, out: Path, number: int, strategies: list[str]) -> None:
    """Print accuracy and cost of each strategy among ten and a hundred classes. Cost is in full evaluations."""
    classifier = DiffusionClassifier.from_pretrained(out, batch_size=500)  # several draws of all classes
    plain = [name for i, name in enumerate(data.class_names) if i % len(LOOKS) == 0]
    some = torch.isin(data.labels, torch.arange(0, len(data.class_names), len(LOOKS))).nonzero().flatten()
    for strategy in strategies:
        costs = []
        for names, rows in ((plain, some[:number]), (list(data.class_names), torch.arange(number))):
            start = time.time()
            results = classifier.classify(
                [data.images[i, 0].numpy() for i in rows], None if len(names) > 10 else names, strategy=strategy
            )
            correct = [r.label == data.class_names[data.labels[i]] for r, i in zip(results, rows, strict=True)]
            costs.append(sum(r.cost for r in results) / len(results))
            row = {"strategy": strategy, "classes": len(names), "images": len(rows), "cost": costs[-1]}
            row |= {"accuracy": share_interval(torch.tensor(correct)), "seconds": time.time() - start}
            print(json.dumps(row), flush=True)
        print(f"{strategy}: {costs[1] / costs[0]:.2f} times the cost")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=("train", "measure"))
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--epochs", type=float, default=1.0)
parser.add_argument("--images", type=int, default=500)
parser.add_argument("--strategies", nargs="+", default=["fixed:1", "fixed:2", "sequential:8/0.01"])
options = parser.parse_args()
if options.what == "train":
    train(pictures(options.data, "train", 100_000), replace(CONFIG, epochs=options.epochs), options.out)
else:
    measure(pictures(options.data, "validation", 10 * options.images), options.out, options.images, options.strategies)
