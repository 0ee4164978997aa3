"""Compare timestep weights for each prediction type of the same network.

    python experiments/parameterisations.py --epochs 3 --out build/parameterisations

Trains a network on Fashion-MNIST to predict ε, v, x or a flow, and a flow with the training times of Stable Diffusion
3. Each is evaluated with three sets of weights of the ε errors: uniform, those of training, and weights fitted on other
images (cross-validated). The output is JSON lines.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis import fit_weights_to, folds
from diffusion_classifier.denoisers import training_weights
from diffusion_classifier.diffusion import weights_at
from diffusion_classifier.metrics import difference_interval, share_interval
from diffusion_classifier.training import OBJECTIVES, TrainConfig, load_labelled_images, train

HELD_OUT, SEED = 5000, 0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--channels", default="32,64")
parser.add_argument("--images", type=int, default=1000, help="held-out images to evaluate (default: %(default)s)")
parser.add_argument("--draws", type=int, default=32)
parser.add_argument(
    "--only", nargs="+", help="models to train, for example epsilon or flow-logit-normal (default: all)"
)
parser.add_argument("--out", type=Path, required=True, help="folder for the models; resumes")
options = parser.parse_args()

everything = load_labelled_images(options.data)
training, held_out = everything.split(HELD_OUT, SEED)
truth = held_out.labels[: options.images].long()
for objective, times in [*((objective, "even") for objective in OBJECTIVES), ("flow", "logit-normal")]:
    name = objective if times == "even" else f"{objective}-{times}"
    if options.only and name not in options.only:
        continue
    config = TrainConfig(
        objective=objective,
        times=times,
        beta_schedule="squaredcos_cap_v2",
        patch_size=2,
        channels=tuple(map(int, options.channels.split(","))),
        epochs=options.epochs,
        batch_size=128,
        optimizer="muon",
        learning_rate=3e-3,
        warmup=100,
    )
    clf = DiffusionClassifier.from_pretrained(train(training, config, options.out / name))
    results = clf.classify(
        (held_out.images[i] for i in range(options.images)), strategy=f"fixed:{options.draws}", weights="uniform"
    )
    errors = torch.stack([result.errors for result in results])
    u = torch.stack([result.t for result in results]).double() / clf.denoiser.schedule.num_timesteps

    def correct(errors: Tensor = errors, weights: Tensor | None = None) -> Tensor:
        """Mark the images whose true class has the least weighted mean error."""
        weighted = errors.double() if weights is None else errors * weights[:, None]
        return weighted.mean(2).argmin(1) == truth[: len(errors)]

    fitted = torch.empty(len(errors), dtype=torch.bool)
    for out in folds(len(errors)):
        w = fit_weights_to(errors, u, truth, ~out, clf.scorer.num_dimensions)
        fitted[out] = correct(weights=weights_at(w, u))[out]
    uniform = correct()
    correct_by_weights = {
        "uniform": uniform,
        "training": correct(weights=weights_at(training_weights(clf.denoiser), u)),
        "fitted": fitted,
    }
    for weights, hits in correct_by_weights.items():
        row = {"objective": objective, "times": times, "weights": weights, "accuracy": share_interval(hits)}
        print(
            json.dumps(row | {"gain": None if weights == "uniform" else difference_interval(hits, uniform)}), flush=True
        )
