"""Choose how the bundled model is read: loss, timesteps, strategy and temperature, on the validation split alone.

    python tools/fashion_validation.py tables build/fashion --out build/validation.safetensors
    python tools/fashion_validation.py choose build/validation.safetensors

The first evaluates every class at every draw and keeps the errors under each loss; the second needs no network: it
replays strategies on those tables. The split is the one that `make train-fashion` held out.
"""

import argparse
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_classifier import Fixed, Staged, Strategy, load_denoiser
from diffusion_classifier.calibration import fit_temperature, forecast_error, search_all
from diffusion_classifier.draws import Draws
from diffusion_classifier.images import load_image, preprocess
from diffusion_classifier.schedules import add_noise
from diffusion_classifier.scoring import LOSSES
from diffusion_classifier.training.data import load_labelled_images

HELD_OUT, SEED = 5000, 0  # of `make train-fashion`
NUM_DIMENSIONS = 28 * 28


def make_tables(options: argparse.Namespace) -> None:
    """Errors of the first validation images: one tensor (images, K, N) per loss."""
    denoiser = load_denoiser(options.model, dtype=options.dtype)
    _, held_out = load_labelled_images(options.data, split="train").split(HELD_OUT, SEED)
    pictures = [load_image(image) for image in held_out.images[: options.images]]
    num_classes, draws = len(denoiser.class_names or ()), Draws()
    conditioning = denoiser.condition(range(num_classes))
    t = draws.times(denoiser.schedule, range(options.draws), 0)
    tables = {loss: torch.empty(len(pictures), num_classes, len(t)) for loss in LOSSES}
    rows = torch.arange(num_classes).repeat(len(t))
    latent_index = torch.arange(len(t)).repeat_interleave(num_classes)
    for i, picture in enumerate(track(pictures)):
        x = denoiser.encode(preprocess(picture.image, denoiser.image_size)[None])
        noise = torch.stack([draws.noise(n, picture.key, denoiser.latent_shape) for n in range(len(t))])
        noisy = add_noise(x, noise, *denoiser.schedule(t))
        predicted = denoiser.predict_noise(noisy, t, conditioning[rows], latent_index)
        for loss, distance in LOSSES.items():
            tables[loss][i] = distance(noise[latent_index], predicted).view(len(t), num_classes).T
    save_file(tables | {"t": t, "labels": held_out.labels[: options.images]}, options.out)


def schedules() -> Iterator[Strategy]:
    """Strategies worth a look, within 64 draws."""
    for n in (4, 8, 16, 32, 64):
        yield Fixed(n)
    for first, last in ((2, 16), (4, 16), (8, 16), (4, 32), (8, 32), (8, 64)):
        for kept in (2, 3):
            yield Staged((first, last), (kept, 1))
    for stages, kept in (((4, 8, 16), (4, 2, 1)), ((4, 12, 32), (4, 2, 1)), ((4, 16, 64), (4, 2, 1))):
        yield Staged(stages, kept)


def choose(options: argparse.Namespace) -> None:
    """Print accuracies on the stored tables, with standard errors, and the temperatures that fit best."""
    tables = load_file(options.tables)
    labels, t = tables["labels"], tables["t"]
    console, n = Console(), len(labels)

    def percent(right: Tensor) -> str:
        p = right.double().mean()
        return f"{p:.1%} ± {(p * (1 - p) / n).sqrt():.1%}"

    windows = [(0.0, 1.0), (0.1, 0.9), (0.2, 0.9), (0.3, 0.9), (0.4, 0.9), (0.2, 0.7), (0.5, 1.0)]
    grid = Table("window", "draws", *LOSSES, title=f"all draws in a window of time, {n} validation images")
    for low, high in windows:
        inside = (t >= low * 1000) & (t < high * 1000)
        cells = [percent(tables[loss][..., inside].mean(2).argmin(1) == labels) for loss in LOSSES]
        grid.add_row(f"{low}-{high}", str(int(inside.sum())), *cells)
    console.print(grid)
    columns = [c for loss in LOSSES for c in (loss, "temperature", "nats")]
    grid = Table("strategy", "evaluations", *columns, title="strategies, each with the temperature that fits it")
    for strategy in schedules():
        if strategy.init(tables["l2"].shape[1]).errors.shape[1] > len(t):
            continue  # more draws than the tables hold
        cells = []
        for loss in LOSSES:
            means, spent = search_all(strategy, tables[loss])
            temperature = fit_temperature(means, labels, NUM_DIMENSIONS)
            nats = forecast_error(means, labels, NUM_DIMENSIONS, temperature)
            cells += [percent(means.argmin(1) == labels), f"{temperature:.3g}", f"{nats:.3f}"]
        grid.add_row(str(strategy), f"{spent.mean():.0f}", *cells)
    console.print(grid)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = parser.add_subparsers(required=True)
command = commands.add_parser("tables")
command.add_argument("model")
command.add_argument("--out", required=True)
command.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
command.add_argument("--images", type=int, default=1000)
command.add_argument("--draws", type=int, default=64)
command.add_argument("--dtype", default="auto")
command.set_defaults(run=make_tables)
command = commands.add_parser("choose")
command.add_argument("tables")
command.set_defaults(run=choose)
options = parser.parse_args()
options.run(options)
