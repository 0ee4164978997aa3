"""What shift does to models: accuracy by its severity, corruption errors, and effective robustness (paper figure 7).

Shape legend: M images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, logit

from ..exceptions import InputError
from ..metrics import share_interval
from ..runs import read_rows, refuse_unlabelled, with_status
from ..shifts import Shift
from ..spec import RunSpec, read_spec
from .figures import pyplot, save

Interval = tuple[float, float, float]
Hits = NDArray[np.bool_]
RESAMPLES = 2000
FEWEST = 3
"""Supervised models that a line is drawn through."""


@dataclass(frozen=True)
class Runs:
    """The runs of one model on the same images.

    Args:
        model: as it was named.
        supervised: whether it was trained to classify and nothing else.
        plain: whether answers are right without shift, (M,).
        shifts: name → severity → the same under shift.
    """

    model: str
    supervised: bool
    plain: Hits
    shifts: Mapping[str, Mapping[int, Hits]] = field(default_factory=dict)

    def shifted(self) -> NDArray[np.float64]:
        """For each image the share of right answers over shifts and severities, each shift counting as much, (M,)."""
        return np.mean([np.mean([*by.values()], axis=0) for by in self.shifts.values()], axis=0)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Robustness:
    """Of one model. Shares come with the ends of their 95 % intervals.

    Args:
        model: as it was named.
        supervised: see `Runs`.
        accuracy: without shift.
        by_shift: name → severity → accuracy.
        mean: accuracy over all shifts; by bootstrap over images.
        corruption_error: mean over shifts of the errors over severities, divided by those of the first model
            (Hendrycks and Dietterich 2019, section 4.1, mCE).
        effective: `mean` less what the line through supervised models has for a model of that accuracy, in logits
            (Taori et al. 2020); None for these, and where there are fewer than three.
    """

    model: str
    supervised: bool
    accuracy: Interval
    by_shift: Mapping[str, Mapping[int, Interval]]
    mean: Interval
    corruption_error: float
    effective: Interval | None = None


def read_runs(folders: Sequence[Path]) -> list[Runs]:
    """Runs by model, in the order in which models are first named.

    Raises:
        InputError: images or their labels differ from run to run, or a run has none; a model has two runs of one shift,
            none without any, other shifts than the first, or runs of other weights or settings.
    """
    found: dict[str, dict[str, Hits]] = {}
    firsts: dict[str, tuple[Path, RunSpec]] = {}
    truth: dict[str, str] = {}
    for folder in folders:
        spec = read_spec(folder)
        rows = with_status(read_rows(folder, ["id", "label", "prediction", "status"]), "done")
        refuse_unlabelled(folder, rows)
        labels = dict(zip(rows["id"].to_pylist(), rows["label"].to_pylist(), strict=True))
        answers = dict(zip(rows["id"].to_pylist(), rows["prediction"].to_pylist(), strict=True))
        truth = truth or labels
        if not truth or labels != truth:
            raise InputError(f"{folder} has answers of {len(labels)} images, and not of the same as {folders[0]}")
        before, first_spec = firsts.setdefault(spec.model, (folder, spec))
        first_spec.refuse_unlike(spec, before, folder)
        of_model = found.setdefault(spec.model, {})
        if spec.shift in of_model:
            raise InputError(f"{folder} is a second run of {spec.model} under the shift {spec.shift or 'none'}")
        of_model[spec.shift] = np.array([answers[i] == truth[i] for i in truth])
    first = next(iter(found.values()))
    for model, by in found.items():
        if set(by) != set(first) or "" not in by or len(by) < 2:
            under = ", ".join(sorted(shift or "none" for shift in by))
            raise InputError(
                f"{model} was evaluated under the shifts {under}: each model needs a run without any, and others under "
                "the same shifts"
            )
    return [
        Runs(model, firsts[model][1].strategy == "supervised", by[""], _by_severity({s: h for s, h in by.items() if s}))
        for model, by in found.items()
    ]


def _by_severity(hits: Mapping[str, Hits]) -> dict[str, dict[int, Hits]]:
    result: dict[str, dict[int, Hits]] = {}
    for shift, right in sorted(hits.items()):
        parsed = Shift.parse(shift)
        result.setdefault(parsed.name, {})[parsed.severity] = right
    return result


def robustness(runs: Sequence[Runs], seed: int = 0) -> list[Robustness]:
    """Of each model, corruption errors being relative to the first.

    Args:
        runs: on the same images, under the same shifts.
        seed: of the bootstrap.
    """
    count = len(runs[0].plain)
    rng = np.random.default_rng(seed)
    weights = [np.full(count, 1 / count), *(rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count)]
    plain = np.array(weights) @ np.array([r.plain for r in runs]).T  # (1 + resamples, models)
    shifted = np.array(weights) @ np.array([r.shifted() for r in runs]).T
    line = [i for i, r in enumerate(runs) if r.supervised]
    above = _above_the_line(plain, shifted, line, count) if len(line) >= FEWEST else None
    result = []
    for i, r in enumerate(runs):
        errors = [_errors(by) / max(_errors(runs[0].shifts[name]), 1 / count) for name, by in r.shifts.items()]
        result.append(
            Robustness(
                r.model,
                r.supervised,
                share_interval(torch.from_numpy(r.plain)),
                {n: {s: share_interval(torch.from_numpy(h)) for s, h in by.items()} for n, by in r.shifts.items()},
                _interval(shifted[:, i]),
                float(np.mean(errors)),
                None if above is None or r.supervised else _interval(above[:, i]),
            )
        )
    return result


def _errors(by: Mapping[int, Hits]) -> float:
    return float(sum(1 - right.mean() for right in by.values()))


def _above_the_line(plain: NDArray[Any], shifted: NDArray[Any], line: list[int], count: int) -> NDArray[np.float64]:
    """How far each model's accuracy under shift is above the line, (1 + resamples, models)."""
    x, y = (logit(np.clip(share, 0.5 / count, 1 - 0.5 / count)) for share in (plain, shifted))
    above: NDArray[np.float64] = shifted - expit(_line(x[:, line], y[:, line], x))
    return above


def _line(x: NDArray[Any], y: NDArray[Any], at: NDArray[Any]) -> NDArray[np.float64]:
    """Values at these x of the line of least squares through points, each along the last axis."""
    mean_x, mean_y = x.mean(-1, keepdims=True), y.mean(-1, keepdims=True)
    spread = ((x - mean_x) ** 2).sum(-1, keepdims=True)
    slope = ((x - mean_x) * (y - mean_y)).sum(-1, keepdims=True) / np.maximum(spread, 1e-12)
    found: NDArray[np.float64] = mean_y + slope * (at - mean_x)
    return found


def _interval(values: NDArray[Any]) -> Interval:
    """Of a statistic and its resamples."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return float(values[0]), float(low), float(high)


def draw_severities(models: Sequence[Robustness], file: Path) -> None:
    """Accuracy against severity, one panel a shift.

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    plt = pyplot()
    names = list(models[0].by_shift)
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    fig, axes = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2 * rows + 1), layout="constrained", squeeze=False, sharey=True
    )
    panels = list(axes.flat)
    for ax, name in zip(panels, names, strict=False):
        for m, (color, marker) in zip(models, _styles(plt, models), strict=True):
            points = {0: m.accuracy, **m.by_shift[name]}
            x, (y, low, high) = list(points), zip(*points.values(), strict=True)
            size = 3 if m.supervised else 7
            ax.plot(x, y, marker + "-", ms=size, lw=size / 4, color=color, label=m.model, zorder=size)
            if not m.supervised:
                ax.fill_between(x, low, high, color=color, alpha=0.15)
        ax.set(title=name, ylim=(0, 1))
        ax.grid(alpha=0.3)
    for ax in panels[len(names) :]:
        ax.set_axis_off()
    fig.supxlabel("severity")
    fig.supylabel("accuracy")
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    save(fig, file)


def draw_effective(models: Sequence[Robustness], file: Path) -> None:
    """Accuracy under shift against accuracy without, in logits, and the line through supervised models (figure 7).

    Raises:
        InputError: matplotlib is missing, or the file cannot be written.
    """
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    supervised = [m for m in models if m.supervised]
    if len(supervised) >= FEWEST:
        x, y = (
            logit(_inside(shares)) for shares in zip(*((m.accuracy[0], m.mean[0]) for m in supervised), strict=True)
        )
        ends = logit(_inside([m.accuracy[0] for m in models]))
        at = np.linspace(ends.min(), ends.max(), 50)
        ax.plot(expit(at), expit(_line(x, y, at)), "--", color="gray", lw=1, label="line through supervised models")
    for m, (color, marker) in zip(models, _styles(plt, models), strict=True):
        x, low, high = _inside(m.accuracy)
        y, bottom, top = _inside(m.mean)
        size = 5 if m.supervised else 12
        ax.errorbar(
            x, y, [[y - bottom], [top - y]], [[x - low], [high - x]], marker, color=color, ms=size, elinewidth=0.5,
            label=m.model,
        )  # fmt: skip
    ax.set(xlabel="accuracy", ylabel="accuracy under shift", xscale="logit", yscale="logit")
    ticks = np.array([*range(5, 95, 5), 95, 97, 98, 99]) / 100
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        axis.set_ticks([t for t in ticks if low < t < high], minor=False)
        axis.set_ticks([], minor=True)
        axis.set_major_formatter("{x:.0%}")
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save(fig, file)


def _inside(shares: Sequence[float]) -> NDArray[np.float64]:
    """Where logits are finite."""
    return np.clip(shares, 0.002, 0.998)


def _styles(plt: Any, models: Sequence[Robustness]) -> list[tuple[Any, str]]:
    """A color and a marker for each model; those that are not supervised stand out."""
    cool, line = plt.get_cmap("winter"), [m.model for m in models if m.supervised]
    others = [m.model for m in models if not m.supervised]
    return [
        (cool(line.index(m.model) / len(line)), "osD^v<>pP"[line.index(m.model) % 9])
        if m.supervised
        else (f"C{(1, 3, 4, 5, 6)[others.index(m.model) % 5]}", "*")
        for m in models
    ]
