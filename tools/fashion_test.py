"""Accuracy of the bundled model on the test set with what the package ships: run once, when all choices are made.

    python tools/fashion_test.py fashion --compile --out build/test.jsonl --figure confusion.png

Each image is a line of the file as it is done; started again, the script goes on with those that are missing.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.progress import track
from scipy.stats import binomtest

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.metrics import expected_calibration_error
from diffusion_classifier.training.data import load_labelled_images

matplotlib.use("Agg")
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="fashion")
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--figure", type=Path)
parser.add_argument("--images", type=int, default=10_000)
parser.add_argument("--compile", action="store_true")
options = parser.parse_args()

classifier = DiffusionClassifier.from_pretrained(options.model, compile_network=options.compile)
names = list(classifier.denoiser.class_names or ())
data = load_labelled_images(options.data, split="test", class_names=names)
done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
todo = sorted(set(range(options.images)) - {row["index"] for row in done})
last = time.perf_counter()
with options.out.open("a") as out:
    results = classifier.stream(data.images[i] for i in todo)
    for result in track(results, total=len(todo), description="test images"):
        index = todo[int(result.name.removeprefix("image "))]
        now = time.perf_counter()
        row = {
            "index": index,
            "truth": names[data.labels[index]],
            "label": result.label,
            "scores": result.scores,
            "num_evaluations": result.num_evaluations,
            "wall": now - last,
        }
        last = now
        done.append(row)
        print(json.dumps(row), file=out, flush=True)

confusion = np.zeros((len(names), len(names)), int)
for row in done:
    confusion[names.index(row["truth"]), names.index(row["label"])] += 1
right, n = int(confusion.trace()), len(done)
interval = binomtest(right, n).proportion_ci(method="wilson")
per_class = confusion.diagonal() / confusion.sum(1)
print(f"accuracy {right / n:.2%} on {n} images, 95 % interval {interval.low:.2%} to {interval.high:.2%}")
print(
    f"mean per class {per_class.mean():.2%}: "
    + ", ".join(f"{c} {a:.1%}" for c, a in zip(names, per_class, strict=True))
)
print(f"evaluations an image: mean {np.mean([row['num_evaluations'] for row in done]):.1f}")
print(f"seconds an image: mean {np.mean([row['wall'] for row in done]):.3f}")
scores, hits = zip(*((max(row["scores"].values()), row["label"] == row["truth"]) for row in done), strict=True)
print(f"calibration error of the score: {expected_calibration_error(torch.tensor(scores), torch.tensor(hits)):.4f}")
if options.figure:
    fig, ax = plt.subplots(figsize=(6.5, 6), layout="constrained")
    ax.imshow(confusion / confusion.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    ax.set(xlabel="predicted", ylabel="truth", title=f"Fashion-MNIST, {n} test images: {right / n:.1%}")
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names)
    for (i, j), count in np.ndenumerate(confusion):
        if count:
            ax.text(j, i, str(count), ha="center", va="center", color="white" if i == j else "black", fontsize=8)
    fig.savefig(options.figure, dpi=130)
