"""Measure how many labelled images each kind of classifier needs.

    python experiments/small_data.py train FASHION_MNIST OUT      # each for the same FLOPs; resumes
    python experiments/small_data.py measure FASHION_MNIST OUT    # on held-out images
    python experiments/small_data.py figure OUT docs/small-data.png

The models are a diffusion network as `fashion`, one with late conditioning and the joint objective as `fashion-fast`,
and a ResNet-18. All are trained from scratch with horizontal flips.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from common import EARLY, Config, evenly_spaced, joint, late, load, pictures, predict, train_for

from diffusion_classifier.analysis import pyplot, save
from diffusion_classifier.metrics import share_interval
from diffusion_classifier.training import SupervisedConfig

SIZES = (100, 300, 1000, 3000, 10_000, 55_000)
KINDS: dict[str, tuple[Config, str]] = {
    "diffusion": (replace(EARLY, flip=True), "sequential:100/0.01"),
    "diffusion, joint": (replace(joint(late(2)), flip=True), "fixed:8"),
    "ResNet-18": (SupervisedConfig(augment="flips"), ""),
}
RESULTS = "results.json"
TRAINED = "trained"
"""File that marks the end of training."""


def folder_of(out: Path, name: str, size: int) -> Path:
    """Return the folder of a model."""
    return out / f"{name.replace(', ', '-')}-{size}"


def figure(out: Path, file: Path) -> None:
    """Plot accuracy against the number of training images."""
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, name in enumerate(KINDS):
        files = {n: folder_of(out, name, n) / RESULTS for n in options.sizes}
        found = {n: json.loads(f.read_text()) for n, f in files.items() if f.exists()}
        if not found:
            continue
        shares, lows, highs = zip(*found.values(), strict=True)
        ax.plot(list(found), shares, "o-", ms=4, color=f"C{i}", label=name)
        ax.fill_between(list(found), lows, highs, alpha=0.15, color=f"C{i}")
    ax.set(xscale="log", xlabel="number of training images", ylabel="accuracy")
    ax.grid(alpha=0.3)
    ax.legend()
    save(fig, file)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=("train", "measure", "figure"))
parser.add_argument("paths", nargs=2)
parser.add_argument("--flops", type=float, default=1e14)
parser.add_argument("--images", type=int, default=1000)
parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
options = parser.parse_args()
one, other = options.paths
if options.what == "figure":
    figure(Path(one), Path(other))
else:
    training, held_out = load(one)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
    held_out = evenly_spaced(held_out, options.images)
    for size in options.sizes:
        for name, (config, strategy) in KINDS.items():
            folder = folder_of(Path(other), name, size)
            if options.what == "train":
                epochs = train_for(training.take(order[:size]), config, options.flops, folder)
                (folder / TRAINED).touch()
                print(json.dumps({"name": name, "images": size, "epochs": epochs}), flush=True)
            elif (folder / TRAINED).exists() and not (folder / RESULTS).exists():
                model = f"{folder}@{strategy}" if strategy else str(folder)
                accuracy = share_interval(predict(model, pictures(held_out)) == held_out.labels)
                (folder / RESULTS).write_text(json.dumps(accuracy))
                print(json.dumps({"name": name, "images": size, "accuracy": accuracy}), flush=True)
