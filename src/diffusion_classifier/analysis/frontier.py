"""Accuracy against evaluations of many strategies, from stored error tables, without the network.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.timestep_weights import WeightsSource, read_weights, weights_at
from ..errors import InputError
from ..metrics import Interval, share_interval
from ..runs.error_tables import ErrorTables
from ..search.posterior import is_correct
from ..search.strategies import Fixed, Sequential, Staged, Strategy
from .calibration import calibrated_folds, search_all, true_classes
from .fit_weights import folds
from .plotting import pyplot, save

ERROR_RATES = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
WINDOWS = {"middle half of the times": (0.25, 0.75), "first half": (0.0, 0.5), "last half": (0.5, 1.0)}
"""Parts of the schedule (paper, section 4.1); all of it, evenly, is there besides."""


STYLES = {"sequential": "o-", "staged": "s--"}
"""Lines of the families of some kinds of strategies; others are dotted."""
FEW = 6
"""Families whose intervals are told apart in a figure; of more, those of sequential strategies alone are drawn."""


@dataclass(frozen=True)
class Point:
    """One strategy on all images.

    Args:
        family: of strategies, joined by a line.
        strategy: as the command line spells it.
        num_evaluations: mean of an image.
        accuracy: share of right answers, with the ends of its 95 % interval; None where images have no labels.
        agreement: share of answers that are those of the full tables, likewise; only where images have no labels.
    """

    family: str
    strategy: str
    num_evaluations: float
    accuracy: Interval | None = None
    agreement: Interval | None = None

    @property
    def share(self) -> Interval:
        """The accuracy, or the agreement."""
        share = self.accuracy or self.agreement
        assert share is not None
        return share


def frontier(tables: ErrorTables, weights: WeightsSource | None = None) -> Iterator[Point]:
    """Points of every family; sequential strategies are calibrated on four fifths and shown on the rest, in turn.

    Args:
        tables: full ones.
        weights: over time, as `read_weights` takes them, or "uniform"; those that the tables were read with if None.

    Raises:
        InputError: tables that are not full, have a single draw, or are of fewer than five images; weights that cannot
            be read.
    """
    errors = tables.complete()
    num_classes, num_draws = errors.shape[1:]
    if num_draws < 2:
        raise InputError("tables of a single draw leave strategies nothing to choose")
    w = _weights(tables, weights)
    reference = _Reference(tables, errors, w)
    next(folds(len(errors)))  # for its complaint

    def point(family: str, strategy: Strategy) -> Point:
        return _point(family, strategy, errors, w, reference)

    yield from _fixed("every class, all times", errors, w, reference)
    u = torch.stack(tables.t)
    u = (u - u.min()) / (u.max() - u.min())
    for family, (low, high) in WINDOWS.items():
        inside = (u >= low) & (u <= high)
        count = int(inside.sum(1).min())
        if count:  # each image's first draws in the window
            columns = inside.int().argsort(dim=1, descending=True, stable=True)[:, :count]
            part = errors.gather(2, columns[:, None].expand(-1, num_classes, -1))
            yield from _fixed(f"every class, {family}", part, w.gather(1, columns), reference)
    for share in (16, 4):
        for last in _doublings(num_draws):
            kept = min(5, num_classes // 2)
            if last // share and kept > 1:
                yield point(f"staged, a {share}th of the draws first", Staged((last // share, last), (kept, 1)))
    for error_rate in ERROR_RATES:
        yield point("sequential, not calibrated", Sequential(num_draws, error_rate))
    for budget in dict.fromkeys((num_draws, max(1, num_draws // 4))):
        for error_rate in ERROR_RATES:
            if error_rate * (len(errors) * 4 // 5 + 1) >= 1:
                family = f"sequential, calibrated, at most {budget} draws"
                means, spent = errors.new_empty(errors.shape[:2]).double(), torch.empty(len(errors))
                part, own = errors[..., :budget], w[:, :budget]
                for held_out, strategy in calibrated_folds(part, error_rate, own):
                    means[held_out], spent[held_out] = search_all(strategy, part[held_out], own[held_out])
                yield reference.point(family, strategy, means, spent)


def scaling(runs: Mapping[str, ErrorTables]) -> Iterator[Point]:
    """Accuracy as draws accumulate, a family for each run (paper, figure 4).

    Args:
        runs: name → full tables of the same images, such as of other timesteps.

    Raises:
        InputError: tables that are not full, of images without labels, or of other images than the first.
    """
    first = next(iter(runs.values()))
    for name, tables in runs.items():
        if (tables.images, tables.truth) != (first.images, first.truth):
            raise InputError(f"{name} is of other images than the run before it: nothing to compare")
        if true_classes(tables) is None:
            raise InputError(f"{name} has images without labels, which have no accuracy")
        errors, w = tables.complete(), _weights(tables)
        yield from _fixed(name, errors, w, _Reference(tables, errors, w))


def _weights(tables: ErrorTables, weights: WeightsSource | None = None) -> Tensor:
    """At each draw, (M, N)."""
    if weights is None:
        weights = tables.settings.get("weights") or "uniform"
    return weights_at((1.0, 1.0) if weights == "uniform" else read_weights(weights), tables.fractions())


class _Reference:
    """Labels that answers are compared with: the true ones, or those of the full tables where some are not known."""

    def __init__(self, tables: ErrorTables, errors: Tensor, w: Tensor) -> None:
        truth = true_classes(tables)
        self._measure = "agreement" if truth is None else "accuracy"
        self._labels = search_all(Fixed(errors.shape[2]), errors, w)[0].argmin(1) if truth is None else truth

    def point(self, family: str, strategy: Strategy, means: Tensor, spent: Tensor) -> Point:
        """The strategy that left these mean errors (M, K) after so many evaluations (M,)."""
        share = share_interval(is_correct(means, self._labels))
        return Point(family, str(strategy), float(spent.mean()), **{self._measure: share})


def _point(family: str, strategy: Strategy, errors: Tensor, w: Tensor, reference: _Reference) -> Point:
    return reference.point(family, strategy, *search_all(strategy, errors, w))


def _fixed(family: str, errors: Tensor, w: Tensor, reference: _Reference) -> Iterator[Point]:
    for n in _doublings(errors.shape[-1]):
        yield _point(family, Fixed(n), errors, w, reference)


def _doublings(last: int) -> list[int]:
    """1, 2, 4 … and the last."""
    return sorted({2**i for i in range(last.bit_length())} | {last})


def draw_frontier(points: list[Point], title: str, ylabel: str, file: Path) -> None:
    """The figure: a line for each family, with intervals."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")
    families = list(dict.fromkeys(p.family for p in points))
    for i, family in enumerate(families):
        line = sorted((p.num_evaluations, *p.share) for p in points if p.family == family)
        x, y, low, high = zip(*line, strict=True)
        style = STYLES.get(next(p.strategy for p in points if p.family == family).partition(":")[0], ".")
        (drawn,) = axes.plot(x, y, style, color=f"C{i}", ms=4, lw=1.2, label=family, zorder=3 if style == "o-" else 2)
        if style == "o-" or len(families) <= FEW:
            axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, lw=0)
        if style == ".":
            drawn.set(linestyle=":")
    axes.set(xscale="log", xlabel="evaluations an image", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    save(figure, file)
