"""Accuracy against number of evaluations for many strategies, from stored error tables, without the network.

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
"""Parts of the schedule to draw timesteps from (paper, section 4.1), besides all of it."""
STYLES = {"sequential": "o-", "staged": "s--"}
"""Line styles by kind of strategy; others are dotted."""
FEW = 6
"""Maximum number of families for which all intervals are drawn; of more, only those of sequential strategies are."""


@dataclass(frozen=True)
class Point:
    """Result of one strategy on all images.

    Args:
        family: family of strategies, which a line joins.
        strategy: as on the command line.
        num_evaluations: mean number of evaluations per image.
        accuracy: accuracy with its 95% interval; None if images have no labels.
        agreement: share of predictions that are those of the full tables; None if images have labels.
    """

    family: str
    strategy: str
    num_evaluations: float
    accuracy: Interval | None = None
    agreement: Interval | None = None

    @property
    def share(self) -> Interval:
        """Return the accuracy, or the agreement."""
        share = self.accuracy or self.agreement
        assert share is not None
        return share


def measure_frontier(tables: ErrorTables, weights: WeightsSource | None = None) -> Iterator[Point]:
    """Yield the points of every family.

    Sequential strategies are cross-validated: calibrated on four fifths of the images and evaluated on the others.

    Args:
        tables: full tables.
        weights: timestep weights, as `read_weights` takes them, or "uniform"; those in the settings of the tables if
            None.

    Raises:
        InputError: the tables are not full, have a single draw or fewer than five images; the weights cannot be read.
    """
    errors = tables.complete()
    num_classes, num_draws = errors.shape[1:]
    if num_draws < 2:
        raise InputError("tables of a single draw leave strategies nothing to choose")
    w = _weights(tables, weights)
    reference = _Reference(tables, errors, w)
    next(folds(len(errors)))  # raises for too few images

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
    """Yield the accuracy at growing numbers of draws, with a family for each run (paper, figure 4).

    Args:
        runs: name → full tables of the same images, for example with other timesteps.

    Raises:
        InputError: tables are not full, have images without labels, or other images than the first.
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
    """Return the weight of each draw, (M, N)."""
    if weights is None:
        weights = tables.settings.get("weights") or "uniform"
    return weights_at((1.0, 1.0) if weights == "uniform" else read_weights(weights), tables.fractions())


class _Reference:
    """Classes that predictions are compared with: the true ones, or those of the full tables if any is unknown."""

    def __init__(self, tables: ErrorTables, errors: Tensor, w: Tensor) -> None:
        truth = true_classes(tables)
        self._measure = "agreement" if truth is None else "accuracy"
        self._labels = search_all(Fixed(errors.shape[2]), errors, w)[0].argmin(1) if truth is None else truth

    def point(self, family: str, strategy: Strategy, means: Tensor, spent: Tensor) -> Point:
        """Return the point of a strategy with final mean errors (M, K) and numbers of evaluations (M,)."""
        share = share_interval(is_correct(means, self._labels))
        return Point(family, str(strategy), float(spent.mean()), **{self._measure: share})


def _point(family: str, strategy: Strategy, errors: Tensor, w: Tensor, reference: _Reference) -> Point:
    return reference.point(family, strategy, *search_all(strategy, errors, w))


def _fixed(family: str, errors: Tensor, w: Tensor, reference: _Reference) -> Iterator[Point]:
    for n in _doublings(errors.shape[-1]):
        yield _point(family, Fixed(n), errors, w, reference)


def _doublings(last: int) -> list[int]:
    """Return 1, 2, 4 … and `last`."""
    return sorted({2**i for i in range(last.bit_length())} | {last})


def draw_frontier(points: list[Point], title: str, ylabel: str, file: Path) -> None:
    """Draw a line with intervals for each family."""
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
    axes.set(xscale="log", xlabel="evaluations per image", ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    save(figure, file)
