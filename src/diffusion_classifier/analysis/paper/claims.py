"""Claims of the paper, and what runs of the bundled models say of them: numbers, verdicts, pictures.

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
from ..frontier import draw_frontier, frontier
from ..image_figures import draw_errors, errors_over_time
from ..inversion import reconstruct
from ..inversion_figure import draw_reconstructions
from ..run_figures import draw_single_times

OnProgress = Callable[[str, float], None]
"""Is called with what is being done, and seconds that what is done was expected to take on two cores."""
SECONDS_TO_NOISE = 1.0
"""And back, for one image."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and what came of it here.

    Args:
        text: what is claimed.
        paper: its number there.
        here: and here, with the 95 % interval where there is one.
        holds: whether the miniature bears it out; None where so few images do not decide it.
    """

    text: str
    paper: str
    here: str
    holds: bool | None


@dataclass(frozen=True)
class Section:
    """Of the page.

    Args:
        title: with the place in the paper.
        claims: that are tested.
        figures: files of pictures, with what is said of each.
    """

    title: str
    claims: list[Claim]
    figures: list[tuple[Path, str]] = field(default_factory=list)


def verdict(claim: Claim) -> str:
    """In words."""
    return "not decided" if claim.holds is None else "holds" if claim.holds else "does not hold"


def claims_of(
    runs: Mapping[str, Path], classifier: DiffusionClassifier, figures: Path, count: int, tell: OnProgress
) -> list[Section]:
    """What runs, and a model at hand, say of the paper's claims.

    Args:
        runs: by the names of `reproduce.WORKS`, finished.
        classifier: of "fashion".
        figures: folder for pictures.
        count: of images that are looked at more closely.
        tell: see `OnProgress`.
    """
    tables = read_tables(runs["tables"])
    return [
        _one_label(runs["tables"], tables),
        _noise(classifier, figures, count),
        _times(runs["tables"], tables, figures),
        _search(runs, tables, figures),
        _one_draw(runs),
        _zero_shot(runs),
        _of_drawn(runs),
        _composition(runs),
        _inversion(classifier, figures, count, tell),
    ]


def _above(difference: Interval, least: float = 0.0) -> bool | None:
    """Whether a difference is above what it should be; None where its interval has both."""
    return True if difference[1] > least else False if difference[2] < least else None


def _accuracy(summary: Summary) -> Interval:
    assert summary.accuracy is not None
    return summary.accuracy


def _difference(first: Path, second: Path) -> Interval:
    """Of the second run from the first, in accuracy or text score."""
    difference = compare(first, second).difference
    assert difference is not None
    return difference


def _right(errors: Tensor, truth: Tensor) -> Tensor:
    """(M,), of tables (M, K, N), under uniform weights."""
    return errors.mean(2).argmin(1) == truth


def _truth(tables: ErrorTables) -> Tensor:
    truth = true_classes(tables)
    assert truth is not None
    return truth


def _one_label(folder: Path, tables: ErrorTables) -> Section:
    share = _accuracy(summarize(folder))
    return Section(
        "A label from a model that was trained to denoise (Algorithm 1; table 3)",
        [
            Claim(
                "A class-conditional diffusion model classifies, though no label was ever predicted in training.",
                "77.3 % of 1,000 classes (DiT, ImageNet)",
                f"{share} of ten, all of them at {len(tables.t[0])} draws",
                _above(share, 1 / len(tables.class_names)),
            )
        ],
    )


def _noise(classifier: DiffusionClassifier, figures: Path, count: int) -> Section:
    """Sneakers as such and as boots: how errors, and their differences, vary over noises at each time."""
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
        "Differences, not errors (section 3.3; figure 2)",
        [
            Claim(
                "Errors vary wildly with the noise, their difference between two classes much less (half as "
                "much, at least): with the same noise for all classes fewer draws are needed.",
                "shown for one image",
                "with noises of their own, two classes need {:.0f} times as many ({:.0f} to {:.0f})".format(
                    *(2**x for x in ratio)
                ),
                _above(ratio, 1.0),  # in powers of two
            )
        ],
        [(file, "Errors of two classes over time for four noises, less their mean: a sneaker.")],
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
            "One draw tells most at an intermediate time.",
            "best at t = 500 of 1,000 (Pets)",
            "accuracy of one draw in the first, middle and last third of the times: "
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
                f"Evenly spread times are better than as many in the middle: {count} draws.",
                "best of all that were tried, at every number of draws (figure 4)",
                f"even less middle: {gain.points()}, uniform weights",
                _above(gain),
            )
        )
    return Section(
        "At which times to draw (section 4.1; figures 3 and 4)", claims, [(file, "Accuracy of a single draw.")]
    )


def _drawn(errors: Tensor, order: Tensor, ranks: Sequence[int] | np.ndarray[Any, Any]) -> Tensor:
    """The draws of these ranks in time."""
    columns = order[:, torch.as_tensor(ranks)]
    return errors.gather(2, columns[:, None].expand(-1, errors.shape[1], -1))


def _search(runs: Mapping[str, Path], tables: ErrorTables, figures: Path) -> Section:
    errors, truth = tables.complete(), _truth(tables)
    schedule = Staged((errors.shape[2] // 8, errors.shape[2]), (3, 1))
    means, spent = search_all(schedule, errors)
    everyone, staged = _right(errors, truth), means.argmin(1) == truth
    change, share = difference_interval(staged, everyone), float(spent.double().mean()) / errors[0].numel()
    file = figures / "frontier.png"
    draw_frontier(list(frontier(tables)), "fashion on images that it has not seen", "accuracy", file)
    ours = summarize(runs["default"])
    same = _difference(runs["tables"], runs["default"])
    return Section(
        "Classes that are behind need no more draws (section 4.2; Algorithm 2)",
        [
            Claim(
                "In stages, accuracy stays (within 2 points) and the work shrinks.",
                "10 classes (CIFAR-10): 2,750 of 5,000 evaluations",
                f"{schedule}: {share:.0%} of the evaluations, accuracy {change.points()}, uniform weights",
                _above(change, -0.02),
            ),
            Claim(
                "Not in the paper: classes are dropped one by one, as soon as they are behind beyond doubt, for an "
                "accuracy within 3 points of all evaluations.",
                "–",
                f"{ours.num_evaluations:,.0f} evaluations an image in place of {errors[0].numel():,}; accuracy "
                f"{_accuracy(ours)}, {same.points()}",
                _above(same, -0.03),
            ),
        ],
        [(file, "Accuracy against evaluations, for every strategy.")],
    )


def _one_draw(runs: Mapping[str, Path]) -> Section:
    fast, pure = summarize(runs["one-draw"]), summarize(runs["default"])
    change = _difference(runs["default"], runs["one-draw"])
    assert fast.cost is not None
    assert pure.cost is not None
    return Section(
        "Networks that see the class at their end, trained to classify (sections 6 and 7, future work)",
        [
            Claim(
                "Architectures could reuse what does not depend on the class; training could aim at classification. "
                "For an accuracy within 2 points of the pure model, from fewer predictions.",
                "future work",
                f"{fast.cost:.1f} predictions of its own network an image in place of {pure.cost:.0f}; "
                f"{_accuracy(fast)}, "
                f"{change.points()} against the network trained to denoise alone",
                _above(change, -0.02) if fast.cost < pure.cost else False,
            )
        ],
    )


def _zero_shot(runs: Mapping[str, Path]) -> Section:
    generative, contrastive = summarize(runs["nouns"]), summarize(runs["nouns-contrastive"])
    change = _difference(runs["nouns-contrastive"], runs["nouns"])
    return Section(
        "Labels in words, beside a contrastive model (table 1)",
        [
            Claim(
                "A text-to-image model is a zero-shot classifier about as good (within 2 points) as a contrastive one.",
                "Pets 86.2 %, CLIP ResNet-50 85.4 %; CIFAR-10 87.1 % and 75.6 %",
                f"ten nouns: {_accuracy(generative)}; contrastive model with the same text encoder "
                f"{_accuracy(contrastive)}: {change.points()}",
                _above(change, -0.02),
            )
        ],
    )


def _of_drawn(runs: Mapping[str, Path]) -> Section:
    itself, taught = summarize(runs["default"]), summarize(runs["of-drawn"])
    change = _difference(runs["of-drawn"], runs["default"])
    return Section(
        "The model itself, beside a network that learns from what it draws (table 1)",
        [
            Claim(
                "To ask the model for the class is better than to train a network on images that it draws.",
                "Pets 86.2 % against 31.3 %; CIFAR-10 87.1 % against 35.3 %",
                f"{_accuracy(itself)} against {_accuracy(taught)}: {change.points()}",
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
        "Words bound to things (table 2; Winoground)",
        [
            Claim(
                "Of two captions of the same words, the diffusion model tells the true one better than the contrastive "
                "model whose text encoder it has.",
                "text score 34.0 % against 33.0 %; objects exchanged 41.8 % against 39.0 %; chance 25 %",
                f"{here[0]} against {here[1]}: {change.points()}",
                _above(change),
            )
        ],
    )


def _inversion(classifier: DiffusionClassifier, figures: Path, count: int, tell: OnProgress) -> Section:
    """Each image under its class, and under another."""
    names = {"Shirt": "Bag", "Sneaker": "Trouser", "Dress": "Sneaker", "Bag": "Shirt", "Trouser": "Ankle boot"}
    samples = [s for s in load_sample() if s.label in names][:count]
    better = []
    for sample in samples:
        _, (true, false) = reconstruct(classifier.denoiser, sample.image, [sample.label, names[sample.label]], steps=20)
        better.append(true.rmse < false.rmse)
        tell("inversion", SECONDS_TO_NOISE)
    share = share_interval(torch.tensor(better))
    pair = [samples[0].label, names[samples[0].label]]
    file = figures / "inversion.png"
    draw_reconstructions(*reconstruct(classifier.denoiser, samples[0].image, pair, steps=20), file)
    return Section(
        "To noise and back (section 6.2; figure 5)",
        [
            Claim(
                "Taken to noise and back under its true class, an image comes back better than under a wrong one.",
                "shown for three images",
                f"better under the truth for {share} of {len(samples)} images",
                _above(share, 0.5),
            )
        ],
        [(file, f"To noise and back under {pair[0]}, which it is, and {pair[1]}.")],
    )
