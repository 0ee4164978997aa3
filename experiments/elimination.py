"""Measure how many evaluations each strategy needs, and how many each ingredient saves.

    python experiments/elimination.py ablation tables.parquet    # on stored error tables, no network
    python experiments/elimination.py oracle                     # 1,000 classes, Gaussian; ten minutes
    python experiments/elimination.py gradient DATA              # recall of gradient shortlists, held-out Fashion-MNIST
    python experiments/elimination.py published TABLES RUN       # against the paper's adaptive schedule, no network

`ablation` reads full error tables of `classify --draws N --save-errors`. `published` reads a run of `evaluate
--strategy fixed:250 --store-errors`, and a default run that includes the same images. Both cross-validate
every row over five folds. `oracle` calibrates on separate images. The output is JSON lines.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from diffusion_classifier import DiffusionClassifier, Fixed, Gradient, Sequential, Staged
from diffusion_classifier.analysis import calibrated_folds, fit_weights_to, folds, search_all, true_classes
from diffusion_classifier.data import load_image, preprocess
from diffusion_classifier.denoisers.families import Gaussian
from diffusion_classifier.diffusion import Draws, add_noise, read_scheduler, weights_at
from diffusion_classifier.metrics import difference_interval, share_interval
from diffusion_classifier.runs import read_rows, read_tables
from diffusion_classifier.search import (
    ImageJob,
    Scorer,
    ScoringSettings,
    SearchContext,
    largest_lag,
    linearised_errors,
    score,
)
from diffusion_classifier.training import load_labelled_images

ERROR_RATE = 0.01
PAPER = "the paper's adaptive schedule"


def report(name: str, label: Tensor, spent: Tensor, full: Tensor, truth: Tensor, **details: Any) -> None:
    """Print one line: evaluations per image, disagreement with exhaustive search, accuracy."""
    disagreement, accuracy = share_interval(label != full), share_interval(label == truth)
    row = {
        "name": name,
        "evaluations": round(float(spent.double().mean()), 1),
        "disagreement": disagreement,
        "accuracy": accuracy,
    }
    print(json.dumps(row | details), flush=True)


def dropped_by(threshold: float, table: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """Return label and evaluations of a search that drops every class whose statistic is above the threshold.

    Args:
        threshold: the same after every draw.
        table: full error table (K, N), float64.
        statistic: maps a table (k, n) of n draws to the lag (k,) of each class behind the leader.
    """
    left, spent, n = torch.arange(len(table)), 0, 0
    while n < table.shape[1] and len(left) > 1:
        n += 1
        spent += len(left)
        behind = statistic(table[left, :n])
        compared, left = left, left[behind <= threshold]
    return int(compared[table[compared, :n].sum(1).argmin()]), spent


def search(thresholds: Tensor, errors: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return labels and evaluations (M,), with one threshold per image; see `dropped_by`."""
    found = [dropped_by(t, table, statistic) for t, table in zip(thresholds.tolist(), errors.double(), strict=True)]
    label, spent = zip(*found, strict=True)
    return torch.tensor(label), torch.tensor(spent)


def cross_validated(errors: Tensor, statistic: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Run `search` on each fold with the threshold that is calibrated on the other four."""
    best, n = errors.double().mean(2).argmin(1), errors.shape[2]
    lag = torch.tensor(
        [
            max(float(statistic(table[:, : i + 1])[b]) for i in range(n))
            for table, b in zip(errors.double(), best, strict=True)
        ],
        dtype=torch.float64,
    )
    thresholds = torch.empty_like(lag)
    for held_out in folds(len(errors)):
        others = lag[~held_out].sort().values
        thresholds[held_out] = others[min(len(others), int(np.ceil((1 - ERROR_RATE) * (len(others) + 1)))) - 1]
    return search(thresholds, errors, statistic)


def sums(table: Tensor) -> Tensor:
    """Return the lag (k,) behind the leader in the sum of errors."""
    total = table.sum(1)
    return total - total.min()


def means(table: Tensor) -> Tensor:
    """Return the lag (k,) behind the leader in the mean of errors."""
    return sums(table) / table.shape[1]


def paired_t(table: Tensor) -> Tensor:
    """Return -p (k,) of the one-sided paired t-test against the leader; -1 before the fifth draw."""
    k, n = table.shape
    if n < 5:
        return torch.full((k,), -1.0, dtype=torch.float64)
    difference = table - table[table.sum(1).argmin()]
    statistic = difference.mean(1) / (difference.std(1) / n**0.5).clamp(min=1e-12)
    return -torch.from_numpy(student.sf(statistic.numpy(), n - 1))


def ablation(options: argparse.Namespace) -> None:
    """Remove or replace each ingredient of the calibrated sequential strategy."""
    tables = read_tables(options.tables)
    errors = tables.complete()[..., : options.draws]
    u, truth = tables.fractions()[:, : options.draws], true_classes(tables)
    assert truth is not None
    num_classes, num_draws = errors.shape[1:]
    full = errors.double().mean(2).argmin(1)
    everything = torch.full((len(errors),), float(num_classes * num_draws))
    report(f"exhaustive, {num_draws} draws", full, everything, full, truth)
    for n in (4, 8, 16):
        by_n = errors[..., :n].double().mean(2).argmin(1)
        report(f"exhaustive, {n} draws", by_n, everything * n / num_draws, full, truth)

    def sequential(name: str, table: Tensor, winner: Tensor = full) -> None:
        label, spent = torch.empty_like(full), torch.empty(len(errors))
        for held_out, strategy in calibrated_folds(table, ERROR_RATE):
            found, spent[held_out] = search_all(strategy, table[held_out])
            label[held_out] = found.argmin(1)
        report(name, label, spent, winner, truth)

    sequential("sequential, calibrated", errors)
    for name, order in {
        "random timestep order": torch.stack(
            [torch.randperm(num_draws, generator=torch.Generator().manual_seed(i)) for i in range(len(errors))]
        ),
        "low timesteps first": u.argsort(1),
        "high timesteps first": u.argsort(1, descending=True),
        "middle timesteps first": (u - 0.5).abs().argsort(1),
    }.items():
        sequential(f"sequential, calibrated, {name}", errors.gather(2, order[:, None].expand(-1, num_classes, -1)))
    weights = torch.empty_like(u)
    for held_out in folds(len(errors)):
        fitted = fit_weights_to(errors, u, truth, ~held_out, tables.settings["num_dimensions"])
        weights[held_out] = weights_at(fitted, u[held_out])
    weighted = (errors * weights[:, None]).float()
    sequential("sequential, calibrated, fitted timestep weights", weighted, weighted.double().mean(2).argmin(1))
    report("sequential, calibrated, mean instead of sum", *cross_validated(errors, means), full, truth)
    # Permute the draws of each class, as if classes shared neither timesteps nor noise.
    alone = errors.gather(2, torch.rand(errors.shape, generator=torch.Generator().manual_seed(0)).argsort(2))
    report(
        "sequential, calibrated, draws not shared between classes",
        *cross_validated(alone, sums),
        alone.double().mean(2).argmin(1),
        truth,
    )
    for p in (0.05, 0.01, 0.002):
        label, spent = search(torch.full((len(errors),), -p, dtype=torch.float64), errors, paired_t)
        report(f"paired t-test against the leader from the fifth draw, p = {p}", label, spent, full, truth)
    found, spent = search_all(Sequential(num_draws, ERROR_RATE), errors)
    report("sequential, e-process, uncalibrated", found.argmin(1), spent, full, truth)
    staged = Staged((num_draws // 8, num_draws), (5, 1)).among(num_classes)
    found, spent = search_all(staged, errors)
    report(str(staged), found.argmin(1), spent, full, truth)


class Oracle:
    """1,000 Gaussian classes in 50 groups at unequal distances. The Bayes accuracy is about 80%."""

    size, groups, members = 8, 50, 20

    def __init__(self, gap: float = 0.19, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        shape = (3, self.size, self.size)
        distance = torch.exp(0.5 * torch.randn(self.groups, 1, 1, 1, 1, generator=rng))
        centres = 0.5 * distance * torch.randn(self.groups, 1, *shape, generator=rng)
        means = (centres + gap * torch.randn(self.groups, self.members, *shape, generator=rng)).flatten(0, 1)
        config = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
        self.schedule = read_scheduler(config)[0]
        self.denoiser = Gaussian(means, torch.ones_like(means), self.schedule)

    def images(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Sample images (count, 3, S, S) and their classes."""
        rng = torch.Generator().manual_seed(seed)
        truth = torch.randint(len(self.denoiser.means), (count,), generator=rng)
        return self.denoiser.means[truth] + torch.randn(count, 3, self.size, self.size, generator=rng), truth

    def table(self, x: Tensor, key: int, num_draws: int) -> Tensor:
        """Return the full error table (K, N), from the expansion of ‖ε - g·(x_t - α·μ)‖² into matrix products."""
        draws, d = Draws(), x.numel()
        alpha, sigma = self.schedule(draws.times(self.schedule, range(num_draws), key))
        noise = torch.stack([draws.noise(n, key, tuple(x.shape)) for n in range(num_draws)])
        noisy = add_noise(x.expand_as(noise), noise, alpha, sigma)
        gain = sigma / (alpha**2 + sigma**2)
        rest = (noise - gain.view(-1, 1, 1, 1) * noisy).flatten(1).double()
        mu, slope = self.denoiser.means.flatten(1).double(), (gain * alpha).double()
        table = rest.square().sum(1) + 2 * slope * (mu @ rest.T) + slope**2 * mu.square().sum(1, keepdim=True)
        return (table / d).float()


def oracle(options: argparse.Namespace) -> None:
    """Compare the paper's ImageNet schedule, the sequential strategy, and the latter after gradient shortlists."""
    world = Oracle()
    denoiser = world.denoiser
    conditioning = denoiser.condition(range(len(denoiser.means)))
    x, truth = world.images(options.images, 1)
    check = world.table(x[0], 0, 3)
    (engine,) = score(denoiser, [ImageJob("0", x[0], 0)], conditioning, ScoringSettings(Fixed(3)))
    torch.testing.assert_close(check, engine.errors, rtol=1e-4, atol=1e-5)
    bayes = denoiser.log_likelihood(x).argmax(1)
    print(json.dumps({"name": "Bayes", "accuracy": share_interval(bayes == truth)}))

    budgets = (250, 1000)
    lags: dict[int, list[float]] = {n: [] for n in budgets}
    for i, image in enumerate(world.images(options.calibration, 2)[0]):
        table = world.table(image, -1 - i, max(budgets))
        for n in budgets:
            lags[n].append(largest_lag(table[:, :n]))
    paper = Staged((50, 100, 500, 1000), (500, 50, 10, 1))
    strategies = {PAPER: paper} | {
        f"sequential, calibrated, {n} draws": Sequential(n, ERROR_RATE, tuple(sorted(lags[n]))) for n in budgets
    }
    predictions: dict[str, list[tuple[int, float]]] = {name: [] for name in strategies}
    full = []
    for i, image in enumerate(x):
        table = world.table(image, i, max(budgets))
        full.append(int(table.double().mean(1).argmin()))
        for name, strategy in strategies.items():
            found, spent = search_all(strategy, table[None, :, : strategy.num_draws])
            predictions[name].append((int(found.argmin()), float(spent)))
    jobs = [ImageJob(str(i), image, i) for i, image in enumerate(x)]
    last = strategies["sequential, calibrated, 250 draws"]
    held: dict[str, Tensor] = {}
    for keep, num_draws in ((50, 4), (200, 4), (50, 16), (200, 16)):
        name = f"gradient:{num_draws}, shortlist of {keep}, then sequential, 250 draws"
        scorer = Scorer(denoiser, batch_size=256)
        context = SearchContext(scorer, ScoringSettings(last), conditioning, tuple(denoiser.class_names or ()))
        narrowed = list(Gradient(keep, num_draws).narrow(context, iter(jobs)))
        held[name] = torch.tensor([bool((job.candidates == c).any()) for job, c in zip(narrowed, truth, strict=True)])
        scored = score(denoiser, iter(narrowed), conditioning, ScoringSettings(last), batch_size=256)
        results = {int(r.name): r for r in scored}
        predictions[name] = []
        for i in range(len(x)):
            r = results[i]
            means = r.errors.double().nanmean(1).where(r.active, torch.inf)
            predictions[name].append((int(means.argmin()), r.cost.num_evaluations))
    reference = torch.tensor([label for label, _ in predictions[PAPER]])
    best = torch.tensor(full)
    report("exhaustive, 1000 draws", best, torch.full((len(x),), 1e6), best, truth)
    for name, pairs in predictions.items():
        label, spent = (torch.tensor(values) for values in zip(*pairs, strict=True))
        details = {f"accuracy difference to {PAPER}": difference_interval(label == truth, reference == truth)}
        if name in held:
            details["recall"] = share_interval(held[name])
        report(name, label, spent, best, truth, **details)


def gradient(options: argparse.Namespace) -> None:
    """Print the recall at k of the true class, ranked by linearised error, on held-out images."""
    classifier = DiffusionClassifier.from_pretrained("fashion", dtype="float32")
    denoiser = classifier.denoiser
    names = tuple(denoiser.class_names or ())
    _, data = load_labelled_images(options.data, split="train", class_names=list(names)).split(5000, 0)
    conditioning = denoiser.condition(range(len(names)))
    context = SearchContext(Scorer(denoiser, batch_size=64), ScoringSettings(Fixed(8)), conditioning, names)
    pictures = [load_image(image) for image in data.images[: options.images]]
    jobs = [ImageJob(str(i), preprocess(p.image, denoiser.image_size), p.key) for i, p in enumerate(pictures)]
    truth = data.labels[: options.images]

    def recalls(values: Tensor) -> dict[str, float]:
        rank = (values < values.gather(1, truth[:, None])).sum(1)
        return {f"recall at {k}": round(float((rank < k).double().mean()), 4) for k in (1, 2, 3, 5)}

    for num_draws in (1, 2, 4, 8):
        parts = [jobs[i : i + 16] for i in range(0, len(jobs), 16)]
        values = torch.cat([linearised_errors(context, part, num_draws) for part in parts])
        print(json.dumps({"name": f"gradient:{num_draws}", "cost": 2 * num_draws} | recalls(values)), flush=True)
    tables = {
        int(r.name): r.errors
        for r in score(denoiser, iter(jobs), conditioning, ScoringSettings(Fixed(4)), batch_size=64)
    }
    errors = torch.stack([tables[i] for i in range(len(jobs))]).double()
    for n in (1, 2, 4):
        row = {"name": f"exhaustive, {n} draws", "cost": n * len(names)}
        print(json.dumps(row | recalls(errors[..., :n].mean(2))), flush=True)


def published(options: argparse.Namespace) -> None:
    """Compare a default run with the paper's adaptive schedule and exhaustive search on the same images.

    The paper's schedule evaluates the last five classes up to 500 draws. It is cut to the draws of the tables.
    """
    tables = read_tables(options.tables)
    errors, truth = tables.complete(), true_classes(tables)
    assert truth is not None
    num_classes, num_draws = errors.shape[1:]
    spent = torch.full((len(errors),), float(num_classes * num_draws))
    fitted = weights_at(tuple(tables.settings["weights"]), tables.fractions())
    full = {
        "uniform": errors.double().mean(2).argmin(1),
        "fitted": search_all(Fixed(num_draws), errors, fitted)[0].argmin(1),
    }
    stages = Staged((num_draws // 5, num_draws), (num_classes // 2, 1))
    means, staged_spent = search_all(stages, errors)
    staged = means.argmin(1)

    def line(name: str, label: Tensor, evaluations: Tensor) -> None:
        disagreement = {f"disagreement, {weights} weights": share_interval(label != full[weights]) for weights in full}
        differences = {
            f"accuracy difference to {baseline}, points": [
                100 * x for x in difference_interval(label == truth, reference == truth)
            ]
            for baseline, reference in ((PAPER, staged), ("exhaustive search", full["uniform"]))
        }
        report(name, label, evaluations, full["uniform"], truth, **disagreement, **differences)

    for weights, label in full.items():
        line(f"exhaustive, {num_draws} draws, {weights} weights", label, spent)
    line(f"{PAPER} as {stages}, uniform weights", staged, staged_spent)
    for weights, w in (("uniform", None), ("fitted", fitted)):
        label, evaluations = torch.empty_like(truth), torch.empty(len(errors))
        for held_out, strategy in calibrated_folds(errors, ERROR_RATE, w):
            found, evaluations[held_out] = search_all(strategy, errors[held_out], None if w is None else w[held_out])
            label[held_out] = found.argmin(1)
        line(f"sequential, calibrated, at most {num_draws} draws, {weights} weights", label, evaluations)
    rows = {row["id"]: row for row in read_rows(options.run, ["id", "prediction", "num_evaluations"]).to_pylist()}
    default = [rows[image] for image in tables.images]
    label = torch.tensor([tables.class_names.index(row["prediction"]) for row in default])
    line("default run", label, torch.tensor([row["num_evaluations"] for row in default]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("ablation")
    command.add_argument("tables", type=Path)
    command.add_argument("--draws", type=int, default=64)
    command.set_defaults(function=ablation)
    command = commands.add_parser("oracle")
    command.add_argument("--images", type=int, default=1000)
    command.add_argument("--calibration", type=int, default=500)
    command.set_defaults(function=oracle)
    command = commands.add_parser("gradient")
    command.add_argument("data", nargs="?", default="/usr/share/datasets/fashion-mnist")
    command.add_argument("--images", type=int, default=1000)
    command.set_defaults(function=gradient)
    command = commands.add_parser("published")
    command.add_argument("tables", type=Path)
    command.add_argument("run", type=Path)
    command.set_defaults(function=published)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
