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

from ..data.corruptions import Corruption
from ..errors import InputError
from ..metrics import Interval, share_interval
from ..runs.spec import RunSpec, read_spec
from ..runs.store import read_rows, refuse_unlabelled, with_status
from .plotting import pyplot, save

Answers = NDArray[np.float64]
"""Whether answers are right, 1 or 0, of every image that any run has, (M,); NaN where it was not asked."""
_Image = tuple[str, str]  # its test set, "" where it is that without shift, and its id
RESAMPLES, CHUNK = 2000, 100
FEWEST = 3
"""Supervised models that a line is drawn through."""
NATURAL = 0
"""What stands for the severity of a shift that has none: a test set of its own."""
PLAIN = ("", 0)
"""Name and severity of no shift."""
_OF_TASKS = ("class_names", "templates", "prompt_names")
"""What runs of one model on two test sets may differ in, too."""


@dataclass(frozen=True)
class Runs:
    """The runs of one model; every model's are on the same images.

    Args:
        model: as it was named.
        supervised: whether it answers in one pass by a head of classes, a student or one trained on drawn images, too.
        plain: without shift, (M,).
        shifts: name → severity → under shift, (M,).
    """

    model: str
    supervised: bool
    plain: Answers
    shifts: Mapping[str, Mapping[int, Answers]] = field(default_factory=dict)


@dataclass(frozen=True)
class Robustness:
    """Of one model. Shares come with the ends of their 95 % intervals.

    Args:
        model: as it was named.
        supervised: see `Runs`.
        accuracy: without shift.
        by_shift: name → severity → accuracy.
        mean: accuracy over all shifts, each counting as much, and as much of it each severity.
        corruption_error: mean over shifts of the errors over severities, divided by those of the first model
            (Hendrycks and Dietterich 2019, section 4.1, mCE).
        effective: `mean` less what the line through supervised models has for a model of that accuracy, in logits
            (Taori et al. 2020); None for these, and where there are fewer than three. The interval is of other images
            and other supervised models, as the Bayesian bootstrap weighs both anew (Rubin 1981).
    """

    model: str
    supervised: bool
    accuracy: Interval
    by_shift: Mapping[str, Mapping[int, Interval]]
    mean: Interval
    corruption_error: float
    effective: Interval | None = None


@dataclass(frozen=True)
class _Run:
    """One run: whether on a test set of its own; name and severity of its shift; labels and answers of its images."""

    folder: Path
    spec: RunSpec
    natural: bool
    shift: tuple[str, int]
    labels: Mapping[_Image, str]
    right: Mapping[_Image, bool]


def read_runs(folders: Sequence[Path], natural: Sequence[Path] = ()) -> list[Runs]:
    """Runs by model, in the order in which models are first named.

    Args:
        folders: without shift, and under shifts of the same images or of some of them.
        natural: on other test sets, each a shift by the name of its task, such as ImageNet-A.

    Raises:
        InputError: images or their labels differ from model to model, or those under a shift are not among those
            without; a run has none; a model has two runs of one shift, none without any, other shifts than the first,
            or runs of other weights or settings.
    """
    runs = [*(_read(folder) for folder in folders), *(_read(folder, natural=True) for folder in natural)]
    found: dict[str, dict[tuple[str, int], _Run]] = {}
    firsts: dict[tuple[str, int], _Run] = {}
    truth: dict[_Image, str] = {}
    for run in runs:
        of_model = found.setdefault(run.spec.model, {})
        if (second := of_model.setdefault(run.shift, run)) is not run:
            raise InputError(f"{run.folder} is a second run of {run.spec.model}, as {second.folder}")
        of_first = next(iter(of_model.values()))
        of_first.spec.refuse_unlike(run.spec, of_first.folder, run.folder, _OF_TASKS if run.natural else ())
        before = firsts.setdefault(run.shift, run)
        if not run.labels or set(run.labels) != set(before.labels):
            raise InputError(
                f"{run.folder} has answers of {len(run.labels)} images, and not of the same as {before.folder}"
            )
        if strange := [image for image, label in run.labels.items() if truth.setdefault(image, label) != label]:
            raise InputError(f"{run.folder} has another label of {strange[0][1]} than a run before it")
    for model, by in found.items():
        if set(by) != set(firsts) or PLAIN not in by or len(by) < 2:
            under = ", ".join(_named(*shift) for shift in sorted(by))
            raise InputError(
                f"{model} was evaluated under the shifts {under}: each model needs a run without any, and others under "
                "the same shifts"
            )
    for run in runs:
        if strange := [image for image in run.labels if not image[0] and image not in firsts[PLAIN].labels]:
            raise InputError(f"{run.folder} has the image {strange[0][1]}, which the runs without shift do not have")
    return [_joined(by, list(truth)) for by in found.values()]


def _read(folder: Path, natural: bool = False) -> _Run:
    spec = read_spec(folder)
    if natural and spec.shift:
        raise InputError(
            f"{folder} is a run under {spec.shift}: natural shifts are test sets of their own, as they are"
        )
    rows = with_status(read_rows(folder, ["id", "label", "prediction", "status"]), "done")
    refuse_unlabelled(folder, rows)
    if natural:
        shift = spec.task or spec.source, NATURAL
    else:
        parsed = Corruption.parse(spec.shift) if spec.shift else None
        shift = PLAIN if parsed is None else (parsed.name, parsed.severity)
    images = [(shift[0] if natural else "", i) for i in rows["id"].to_pylist()]
    labels = dict(zip(images, rows["label"].to_pylist(), strict=True))
    answers = zip(images, rows["prediction"].to_pylist(), strict=True)
    return _Run(folder, spec, natural, shift, labels, {image: answer == labels[image] for image, answer in answers})


def _named(shift: str, severity: int) -> str:
    return f"{shift}:{severity}" if severity else shift or "none"


def _joined(by: Mapping[tuple[str, int], _Run], images: Sequence[_Image]) -> Runs:
    """The runs of one model, their answers in the order of these images."""

    def answers(run: _Run) -> Answers:
        return np.array([run.right.get(image, np.nan) for image in images], dtype=float)

    shifts: dict[str, dict[int, Answers]] = {}
    for (name, severity), run in sorted(by.items()):
        if (name, severity) != PLAIN:
            shifts.setdefault(name, {})[severity] = answers(run)
    spec = by[PLAIN].spec
    return Runs(spec.model, spec.strategy == "supervised", answers(by[PLAIN]), shifts)


def robustness(runs: Sequence[Runs], seed: int = 0) -> list[Robustness]:
    """Of each model, corruption errors being relative to the first.

    Args:
        runs: on the same images, under the same shifts.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    count = len(runs[0].plain)
    line = [i for i, r in enumerate(runs) if r.supervised]
    mean: list[NDArray[np.float64]] = []
    above: list[NDArray[np.float64]] = []
    for some in [1] + [CHUNK] * (RESAMPLES // CHUNK):  # first as they are, each counting as much
        of_images, of_line = np.ones((some, count)), np.ones((some, len(line)))
        if mean:
            of_images, of_line = rng.exponential(size=of_images.shape), rng.exponential(size=of_line.shape)
        plain = _shares([r.plain for r in runs], of_images)
        corrupted = np.mean(
            [
                np.mean([_shares([r.shifts[name][severity] for r in runs], of_images) for severity in by], axis=0)
                for name, by in runs[0].shifts.items()
            ],
            axis=0,
        )
        mean.append(corrupted)
        if len(line) >= FEWEST:
            above.append(_above_the_line(plain, corrupted, line, of_line, count))
    result = []
    for i, r in enumerate(runs):
        errors = [_errors(by) / max(_errors(runs[0].shifts[name]), 1 / count) for name, by in r.shifts.items()]
        result.append(
            Robustness(
                r.model,
                r.supervised,
                _accuracy(r.plain),
                {name: {severity: _accuracy(of) for severity, of in by.items()} for name, by in r.shifts.items()},
                _interval(np.concatenate(mean)[:, i]),
                float(np.mean(errors)),
                None if not above or r.supervised else _interval(np.concatenate(above)[:, i]),
            )
        )
    return result


def _shares(answers: Sequence[Answers], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Of right answers of K models to the same images, (K,) of (M,), by R weights of images, (R, M): (R, K)."""
    asked = ~np.isnan(answers[0])
    of_asked = weights[:, asked]
    shares: NDArray[np.float64] = of_asked @ np.array(answers)[:, asked].T / of_asked.sum(1, keepdims=True)
    return shares


def _accuracy(answers: Answers) -> Interval:
    return share_interval(torch.from_numpy(answers[~np.isnan(answers)] == 1))


def _errors(by: Mapping[int, Answers]) -> float:
    return float(sum(1 - np.nanmean(answers) for answers in by.values()))


def _above_the_line(
    plain: NDArray[Any], corrupted: NDArray[Any], line: list[int], weights: NDArray[Any], count: int
) -> NDArray[np.float64]:
    """How far each model's accuracy under shift is above the line through some, by weights of these (R, L): (R, K)."""
    x, y = (logit(np.clip(share, 0.5 / count, 1 - 0.5 / count)) for share in (plain, corrupted))
    above: NDArray[np.float64] = corrupted - expit(_line(x[:, line], y[:, line], x, weights))
    return above


def _line(x: NDArray[Any], y: NDArray[Any], at: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Values at these x of the line of least squares through weighted points, each along the last axis."""
    weights = weights / weights.sum(-1, keepdims=True)
    mean_x, mean_y = ((weights * of).sum(-1, keepdims=True) for of in (x, y))
    spread = (weights * (x - mean_x) ** 2).sum(-1, keepdims=True)
    slope = (weights * (x - mean_x) * (y - mean_y)).sum(-1, keepdims=True) / np.maximum(spread, 1e-12)
    found: NDArray[np.float64] = mean_y + slope * (at - mean_x)
    return found


def _interval(values: NDArray[Any]) -> Interval:
    """Of a statistic and its resamples."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Interval(float(values[0]), float(low), float(high))


def draw_severities(models: Sequence[Robustness], file: Path) -> None:
    """Accuracy against severity, one panel a shift that has severities.

    Raises:
        InputError: no shift has; matplotlib is missing, or the file cannot be written.
    """
    names = [name for name, by in models[0].by_shift.items() if set(by) != {NATURAL}]
    if not names:
        raise InputError("the runs are under no shift that has severities to draw")
    plt = pyplot()
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
        ax.plot(
            expit(at),
            expit(_line(x, y, at, np.ones(len(x)))),
            "--",
            color="gray",
            lw=1,
            label="line through supervised models",
        )
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
