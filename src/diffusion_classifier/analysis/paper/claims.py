"""Claims of the paper, tested with runs of the bundled models: numbers, verdicts, figures.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...classifier import DiffusionClassifier
from ...data.fashion import load_sample
from ...metrics import Interval, difference_interval, mean_interval, share_interval
from ...runs.error_tables import ErrorTables, read_tables
from ...runs.summary import Summary, compare, summarize
from ...search.strategies import Staged
from ..calibration import search_all, true_classes
from ..frontier import draw_frontier, measure_frontier
from ..image_figures import draw_errors, errors_over_time
from ..inversion import reconstruct
from ..inversion_figure import draw_reconstructions
from ..run_figures import draw_single_times

OnProgress = Callable[[str, float], None]
"""Progress callback: (step name, expected seconds of the finished part, on two cores)."""
SECONDS_TO_INVERT = 1.0
"""Seconds to invert and reconstruct one image."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the result here.

    Args:
        text: the claim.
        paper: the number in the paper.
        here: the number here, with its 95% interval if there is one.
        holds: whether the claim holds for the bundled models; None if there are too few images to decide.
    """

    text: str
    paper: str
    here: str
    holds: bool | None


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Args:
        title: title with the place in the paper.
        claims: the claims that are tested.
        figures: image files with their captions.
    """

    title: str
    claims: list[Claim]
    figures: list[tuple[Path, str]] = field(default_factory=list)


def verdict(claim: Claim) -> str:
    """Return the verdict on a claim in words."""
    return "not decided" if claim.holds is None else "holds" if claim.holds else "does not hold"


def claims_of(
    runs: Mapping[str, Path], classifier: DiffusionClassifier, figures: Path, count: int, progress: OnProgress
) -> list[Section]:
    """Test the paper's claims with finished runs and a model.

    Args:
        runs: name in `reproduce.PAPER_RUNS` → folder of the finished run.
        classifier: the model "fashion".
        figures: folder for figures.
        count: number of images that are inverted, and evaluated under several noises.
        progress: see `OnProgress`.
    """
    tables = read_tables(runs["tables"])
    return [
        _one_label(runs["tables"], tables),
        _noise(classifier, figures, count),
        _times(runs["tables"], tables, figures),
        _search(runs, tables, figures),
        _one_draw(runs),
        _zero_shot(runs),
        _synthetic(runs),
        _composition(runs),
        _inversion(classifier, figures, count, progress),
    ]


def _above(difference: Interval, least: float = 0.0) -> bool | None:
    """Return whether a difference is above `least`; None if `least` lies within its interval."""
    return True if difference.low > least else False if difference.high < least else None


def _accuracy(summary: Summary) -> Interval:
    assert summary.accuracy is not None
    return summary.accuracy


def _difference(first: Path, second: Path) -> Interval:
    """Return the accuracy, or text score, of the second run less that of the first."""
    difference = compare(first, second).difference
    assert difference is not None
    return difference


def _right(errors: Tensor, truth: Tensor) -> Tensor:
    """Return the correctness (M,) of predictions from tables (M, K, N), under uniform weights."""
    return errors.mean(2).argmin(1) == truth


def _truth(tables: ErrorTables) -> Tensor:
    truth = true_classes(tables)
    assert truth is not None
    return truth


def _one_label(folder: Path, tables: ErrorTables) -> Section:
    share = _accuracy(summarize(folder))
    return Section(
        "Classification with a model that was trained to denoise (Algorithm 1; table 3)",
        [
            Claim(
                "A class-conditional diffusion model classifies, although it was never trained to predict a label.",
                "77.3% over 1,000 classes (DiT, ImageNet)",
                f"{share} over 10 classes, with {len(tables.t[0])} draws of every class",
                _above(share, 1 / len(tables.class_names)),
            )
        ],
    )


def _noise(classifier: DiffusionClassifier, figures: Path, count: int) -> Section:
    """Compare the variance over noises of errors and of their differences, for sneakers as "Sneaker" and as boots."""
    pair = ["Sneaker", "Ankle boot"]
    samples = [sample for sample in load_sample() if sample.label == pair[0]][:count]
    ratios = []
    for sample in samples:
        errors, times = errors_over_time(classifier, sample.image, pair, num_noises=8, num_times=20)
        apart, shared = errors.double().var(1).sum(0), (errors[0] - errors[1]).double().var(0)  # at each time
        ratios.append(float(apart.sum() / shared.sum()))
        shown = errors[:, :4]
    ratio = mean_interval(torch.tensor(ratios, dtype=torch.float64).log2())
    file = figures / "errors.png"
    draw_errors(shown, times, pair, file)
    return Section(
        "Shared noise (section 3.3; figure 2)",
        [
            Claim(
                "Errors vary strongly with the noise, but their difference between two classes much less (at most half "
                "as much), so that fewer draws are needed if all classes share the noise.",
                "shown for one image",
                "with separate noise, two classes need {:.0f} times as many draws ({:.0f} to {:.0f})".format(
                    *(2**x for x in ratio)
                ),
                _above(ratio, 1.0),  # in powers of two
            )
        ],
        [(file, "Errors of two classes by timestep for four noises, less their mean, for an image of a sneaker.")],
    )


def _times(folder: Path, tables: ErrorTables, figures: Path) -> Section:
    errors, truth, u = tables.complete(), _truth(tables), tables.fractions()
    right = errors.argmin(1) == truth[:, None]  # (M, N), by each draw alone
    third = (u * 3).long().clamp(max=2)
    early, middle, late = (
        (right & (third == i)).sum(1).double() / (third == i).sum(1) for i in range(3)
    )  # of each image
    best_other = early if early.mean() > late.mean() else late
    file = figures / "times.png"
    draw_single_times(folder, file)
    claims = [
        Claim(
            "A single draw is most accurate at an intermediate timestep.",
            "best at t = 500 of 1,000 (Pets)",
            "accuracy of one draw in the first, middle and last third of the schedule: "
            + ", ".join(str(mean_interval(part)) for part in (early, middle, late)),
            _above(mean_interval(middle - best_other)),
        )
    ]
    order = u.argsort(1)
    n = u.shape[1]
    for count in (8, 32):
        even = _right(_drawn(errors, order, np.linspace(0, n - 1, count).round().astype(int)), truth)
        centre = _right(_drawn(errors, order, np.arange((n - count) // 2, (n + count) // 2)), truth)
        gain = difference_interval(even, centre)
        claims.append(
            Claim(
                f"Evenly spread timesteps are better than as many in the middle: {count} draws.",
                "best of all choices, at every number of draws (figure 4)",
                f"even minus middle: {gain.points()}, uniform weights",
                _above(gain),
            )
        )
    return Section("Choice of timesteps (section 4.1; figures 3 and 4)", claims, [(file, "Accuracy of a single draw.")])


def _drawn(errors: Tensor, order: Tensor, ranks: Sequence[int] | np.ndarray[Any, Any]) -> Tensor:
    """Return the errors of the draws with these ranks by timestep."""
    columns = order[:, torch.as_tensor(ranks)]
    return errors.gather(2, columns[:, None].expand(-1, errors.shape[1], -1))


def _search(runs: Mapping[str, Path], tables: ErrorTables, figures: Path) -> Section:
    errors, truth = tables.complete(), _truth(tables)
    schedule = Staged((errors.shape[2] // 8, errors.shape[2]), (3, 1))
    means, spent = search_all(schedule, errors)
    everyone, staged = _right(errors, truth), means.argmin(1) == truth
    change, share = difference_interval(staged, everyone), float(spent.double().mean()) / errors[0].numel()
    file = figures / "frontier.png"
    draw_frontier(list(measure_frontier(tables)), "fashion on test images", "accuracy", file)
    ours = summarize(runs["default"])
    same = _difference(runs["tables"], runs["default"])
    return Section(
        "Adaptive evaluation (section 4.2; Algorithm 2)",
        [
            Claim(
                "An adaptive schedule reduces evaluations at the same accuracy (within 2 points).",
                "10 classes (CIFAR-10): 2,750 of 5,000 evaluations",
                f"{schedule}: {share:.0%} of the evaluations, accuracy {change.points()}, uniform weights",
                _above(change, -0.02),
            ),
            Claim(
                "Not in the paper: dropping each class once it is statistically behind keeps the accuracy of all "
                "evaluations (within 3 points).",
                "–",
                f"{ours.num_evaluations:,.0f} evaluations per image instead of {errors[0].numel():,}; accuracy "
                f"{_accuracy(ours)}, {same.points()}",
                _above(same, -0.03),
            ),
        ],
        [(file, "Accuracy against evaluations per image, for every strategy.")],
    )


def _one_draw(runs: Mapping[str, Path]) -> Section:
    fast, pure = summarize(runs["one-draw"]), summarize(runs["default"])
    change = _difference(runs["default"], runs["one-draw"])
    assert fast.cost is not None
    assert pure.cost is not None
    return Section(
        "Late conditioning, trained to classify (sections 6 and 7, future work)",
        [
            Claim(
                "Architectures could share what does not depend on the class, and training could aim at "
                "classification: fewer predictions at the accuracy of the plain model (within 2 points).",
                "future work",
                f"{fast.cost:.1f} predictions per image of its own network instead of {pure.cost:.0f}; "
                f"{_accuracy(fast)}, "
                f"{change.points()} against the network that was only trained to denoise",
                _above(change, -0.02) if fast.cost < pure.cost else False,
            )
        ],
    )


def _zero_shot(runs: Mapping[str, Path]) -> Section:
    generative, contrastive = summarize(runs["nouns"]), summarize(runs["nouns-contrastive"])
    change = _difference(runs["nouns-contrastive"], runs["nouns"])
    return Section(
        "Zero-shot classification, compared with a contrastive model (table 1)",
        [
            Claim(
                "A text-to-image model classifies zero-shot about as well as a contrastive model (within 2 points).",
                "Pets 86.2%, CLIP ResNet-50 85.4%; CIFAR-10 87.1% and 75.6%",
                f"10 nouns: {_accuracy(generative)}; contrastive model with the same text encoder "
                f"{_accuracy(contrastive)}: {change.points()}",
                _above(change, -0.02),
            )
        ],
    )


def _synthetic(runs: Mapping[str, Path]) -> Section:
    itself, student = summarize(runs["default"]), summarize(runs["of-drawn"])
    change = _difference(runs["of-drawn"], runs["default"])
    return Section(
        "The model itself, compared with a network trained on its samples (table 1)",
        [
            Claim(
                "Classifying with the model is better than training a network on images that it generates.",
                "Pets 86.2% against 31.3%; CIFAR-10 87.1% against 35.3%",
                f"{_accuracy(itself)} against {_accuracy(student)}: {change.points()}",
                _above(change),
            )
        ],
    )


def _composition(runs: Mapping[str, Path]) -> Section:
    here = []
    for name in ("pairs", "pairs-contrastive"):
        composition = summarize(runs[name]).composition
        assert composition is not None
        here.append(str(composition.overall.shares["text"]))
    change = _difference(runs["pairs-contrastive"], runs["pairs"])
    return Section(
        "Compositional reasoning (table 2; Winoground)",
        [
            Claim(
                "The diffusion model is better at choosing between two captions of the same words than the contrastive "
                "model with the same text encoder.",
                "text score 34.0% against 33.0%; objects swapped 41.8% against 39.0%; chance 25%",
                f"{here[0]} against {here[1]}: {change.points()}",
                _above(change),
            )
        ],
    )


def _inversion(classifier: DiffusionClassifier, figures: Path, count: int, progress: OnProgress) -> Section:
    """Reconstruct each image under its own class, and under another."""
    names = {"Shirt": "Bag", "Sneaker": "Trouser", "Dress": "Sneaker", "Bag": "Shirt", "Trouser": "Ankle boot"}
    samples = [s for s in load_sample() if s.label in names][:count]
    better = []
    for sample in samples:
        _, (true, false) = reconstruct(classifier.denoiser, sample.image, [sample.label, names[sample.label]], steps=20)
        better.append(true.rmse < false.rmse)
        progress("inversion", SECONDS_TO_INVERT)
    share = share_interval(torch.tensor(better))
    pair = [samples[0].label, names[samples[0].label]]
    file = figures / "inversion.png"
    draw_reconstructions(*reconstruct(classifier.denoiser, samples[0].image, pair, steps=20), file)
    return Section(
        "Inversion (section 6.2; figure 5)",
        [
            Claim(
                "Inversion under the true class reconstructs an image better than under a wrong one.",
                "shown for three images",
                f"better under the true class for {share} of {len(samples)} images",
                _above(share, 0.5),
            )
        ],
        [(file, f"Inverted and reconstructed under the true class {pair[0]}, and under {pair[1]}.")],
    )
