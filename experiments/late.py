"""Measure late conditioning and the joint objective, each alone and combined.

    python experiments/late.py train FASHION_MNIST OUT      # 17 models at equal FLOPs; resumes
    python experiments/late.py measure FASHION_MNIST OUT    # on held-out images
    python experiments/late.py table OUT docs/late-table.md
    python experiments/late.py figure OUT docs/late.png
    python experiments/late.py samples OUT docs/late-samples.png

"early" is the network of `fashion`, which is class-conditional in every block. "late" is a backbone shared by all
classes and a class-conditional head of 3, 5 or 9 residual blocks, 32 wide. The objective is the denoising error plus λ
times the cross-entropy over the true class and three negatives. All models are trained for the same FLOPs, with
otherwise equal settings. Models are selected and measured on the 5,000 images that `make train-fashion` holds out.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import EARLY, draw_samples, evenly_spaced, forward_flops, joint, late, load, pictures, train_for
from torch import Tensor

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis import fit_temperature, pyplot, save
from diffusion_classifier.data import FASHION
from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.metrics import expected_calibration_error, share_interval
from diffusion_classifier.search import log_posterior, mean_errors

DRAWS = (1, 2, 4, 8, 40)
BATCH = 400
RESULTS = "results.json"
NETWORKS = {"early": EARLY, **{f"late {2 * n + 1}": late(n) for n in (1, 2, 4)}}
LAMBDAS = (0.0, 0.01, 0.05, 0.2)
MODELS = {f"{name}, λ {weight:g}": joint(config, weight) for weight in LAMBDAS for name, config in NETWORKS.items()}
DENSITY = Path(__file__).parents[1] / "tools" / "fashion_fast_times.json"
MODELS["late 3, λ 0.05, dense"] = replace(joint(late(1)), times=tuple(json.loads(DENSITY.read_text())))
"""Trained more often at low noise, as `fashion-fast`."""


def folder_of(out: Path, name: str) -> Path:
    """Return the folder of a model."""
    return out / name.replace(",", "").replace("λ ", "").replace(" ", "-")


def train_all(data: str, out: Path, flops: float, only: str | None) -> None:
    """Train every model for `flops`."""
    images, _ = load(data)
    for name, config in MODELS.items():
        folder = folder_of(out, name)
        if only not in (None, name) or (folder / "seconds").exists():
            continue
        start = time.time()
        epochs = train_for(images, config, flops, folder)
        (folder / "seconds").write_text(str(time.time() - start))  # since the last resume
        print(json.dumps({"name": name, "epochs": epochs, "seconds": time.time() - start}), flush=True)


def measure(data: str, out: Path, num_images: int, only: str | None, timesteps: str) -> None:
    """Measure every trained model on held-out images.

    Results are printed, and with even timesteps also written to the model's folder.
    """
    held_out = evenly_spaced(load(data)[1], num_images)
    truth = held_out.labels
    for name in MODELS:
        folder = folder_of(out, name)
        if only not in (None, name) or not (folder / "seconds").exists():
            continue
        if timesteps == "even" and (folder / RESULTS).exists():
            continue
        classifier = DiffusionClassifier.from_pretrained(folder, batch_size=BATCH)
        tables = classifier.classify(
            pictures(held_out), strategy=f"fixed:{max(DRAWS)}", timesteps=timesteps, weights="uniform"
        )
        errors = torch.stack([r.errors for r in tables])
        result = {
            "images": num_images,
            "cost_of_ten_classes": tables[0].cost / max(DRAWS),
            "flops": forward_flops(MODELS[name], held_out),
            "denoising_error": float(errors[torch.arange(len(truth)), truth].mean()),
            "draws": {n: evaluate_errors(errors[..., :n], truth, classifier.denoiser.latent_shape) for n in DRAWS},
        }
        if timesteps == "even":
            (folder / RESULTS).write_text(json.dumps(result, indent=1))
        print(name, json.dumps(result), flush=True)


def evaluate_errors(errors: Tensor, truth: Tensor, shape: tuple[int, ...]) -> dict[str, object]:
    """Return accuracy and ECE. The temperature of each half of the images is fitted on the other half."""
    means, size = mean_errors(errors), torch.Size(shape).numel()
    correct, scores = means.argmin(1) == truth, torch.zeros(len(truth), dtype=torch.float64)
    for half in (0, 1):
        here = torch.arange(len(truth)) % 2 == half
        temperature = fit_temperature(means[~here], truth[~here], size)
        posteriors = [log_posterior(m, num_dimensions=size, temperature=temperature) for m in means[here]]
        scores[here] = torch.stack(posteriors).amax(1).exp()
    return {"accuracy": share_interval(correct), "calibration_error": expected_calibration_error(scores, correct)}


def read_results(out: Path) -> dict[str, Any]:
    """Return the results by model. `cost` is that of one draw of ten classes, in evaluations of the early network."""
    files = {name: folder_of(out, name) / RESULTS for name in MODELS}
    results = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    full = results["early, λ 0"]["flops"]
    return {n: {**r, "cost": r["cost_of_ten_classes"] * r["flops"] / full} for n, r in results.items()}


def table(out: Path, file: Path) -> None:
    """Write all results as a Markdown table."""
    heads = ["network", "cost", "denoising error", *map(str, DRAWS), "ECE 1", f"ECE {DRAWS[-1]}"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for name, r in read_results(out).items():
        draws = [r["draws"][str(n)] for n in DRAWS]
        accuracies = [f"{a:.1%} ({low:.1%}–{high:.1%})" for a, low, high in (d["accuracy"] for d in draws)]
        errors = [f"{draws[i]['calibration_error']:.3f}" for i in (0, -1)]
        cells = [name, f"{r['cost']:.2f}", f"{r['denoising_error']:.4f}", *accuracies, *errors]
        lines.append("| " + " | ".join(cells) + " |")
    file.write_text("\n".join(lines) + "\n")


def figure(out: Path, file: Path) -> None:
    """Plot accuracy against cost in evaluations of the early network."""
    results = read_results(out)
    plt = pyplot()
    fig, axes = plt.subplots(1, len(LAMBDAS), figsize=(14, 4), sharey=True, layout="constrained")
    for ax, weight in zip(axes, LAMBDAS, strict=True):
        for i, network in enumerate(NETWORKS):
            if (r := results.get(f"{network}, λ {weight:g}")) is None:
                continue
            unit, accuracy = r["cost"], [r["draws"][str(n)]["accuracy"] for n in DRAWS]
            ax.plot([n * unit for n in DRAWS], [a[0] for a in accuracy], "o-", ms=4, color=f"C{i}", label=network)
            ax.fill_between([n * unit for n in DRAWS], *zip(*(a[1:] for a in accuracy), strict=True), alpha=0.15,
                            color=f"C{i}")  # fmt: skip
        ax.set(xscale="log", xlabel="evaluations of the early network per image", title=f"λ = {weight:g}")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy")
    axes[0].legend()
    save(fig, file)


def samples(out: Path, file: Path) -> None:
    """Plot one sample per class and model, all from the same noise."""
    folders = {name: folder_of(out, name) for name in MODELS}
    trained = {name: folder for name, folder in folders.items() if (folder / "seconds").exists()}
    draw_samples(((name, load_denoiser(folder)) for name, folder in trained.items()), FASHION, file)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("what", choices=("train", "measure", "table", "figure", "samples"))
parser.add_argument("paths", nargs=2)
parser.add_argument("--flops", type=float, default=2e14)
parser.add_argument("--only")
parser.add_argument("--images", type=int, default=1000)
parser.add_argument("--timesteps", default="even", help="timesteps of `measure` (default: %(default)s)")
options = parser.parse_args()
one, other = options.paths
if options.what == "train":
    train_all(one, Path(other), options.flops, options.only)
elif options.what == "measure":
    measure(one, Path(other), options.images, options.only, options.timesteps)
else:
    {"table": table, "figure": figure, "samples": samples}[options.what](Path(one), Path(other))
