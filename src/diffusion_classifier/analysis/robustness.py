"""Robustness to distribution shift: accuracy by severity, corruption error, effective robustness (paper, figure 7).

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
from ..runs.row import table_to_rows
from ..runs.spec import RunSpec, read_spec
from ..runs.store import check_labelled, read_rows, with_status
from .plotting import pyplot, save

Hits = NDArray[np.float64]
"""1 for a correct prediction, 0 for a wrong one, over the images of all runs, (M,); NaN where a run lacks the image."""
_Image = tuple[str, str]  # test set ("" for that of the runs without shift), id
RESAMPLES, CHUNK = 2000, 100
FEWEST = 3
"""Minimum number of supervised models for a line through them."""
NATURAL = 0
"""Severity of a natural shift, which is a test set of its own."""
PLAIN = ("", 0)
"""Name and severity of the images without shift."""
_OF_TASKS = ("class_names", "templates", "prompt_names")
"""Fields in which runs of one model on two test sets may differ, too."""


@dataclass(frozen=True)
class ModelRuns:
    """Runs of one model; all models have the same images.

    Args:
        model: name of the model, as given.
        supervised: whether it is a one-pass model with a class head; students and networks trained on generated images
            count as well.
        plain: hits without shift, (M,).
        shifts: name → severity → hits under the shift, (M,).
    """

    model: str
    supervised: bool
    plain: Hits
    shifts: Mapping[str, Mapping[int, Hits]] = field(default_factory=dict)


@dataclass(frozen=True)
class Robustness:
    """Robustness of one model. Shares have 95% intervals.

    Args:
        model: name of the model, as given.
        supervised: see `ModelRuns`.
        accuracy: accuracy without shift.
        by_shift: name → severity → accuracy.
        mean: mean accuracy over shifts; that of a shift is the mean over its severities.
        corruption_error: mean over shifts of the error summed over severities, relative to that of the first model
            (mCE; Hendrycks and Dietterich 2019, section 4.1).
        effective: effective robustness (Taori et al. 2020): `mean` less the accuracy under shift that a line through
            the supervised models, in logits, predicts from `accuracy`. None for supervised models, and if there are
            fewer than three. The interval covers the choice of images and of supervised models, by the Bayesian
            bootstrap (Rubin 1981).
    """

    model: str
    supervised: bool
    accuracy: Interval
    by_shift: Mapping[str, Mapping[int, Interval]]
    mean: Interval
    corruption_error: float
    effective: Interval | None = None


@dataclass(frozen=True)
class _RunHits:
    """One run.

    Args:
        folder: its folder.
        spec: its spec.
        natural: whether it is on a test set of its own.
        shift: name and severity of its shift.
        truth: image → true class.
        correct: image → whether the prediction is correct.
    """

    folder: Path
    spec: RunSpec
    natural: bool
    shift: tuple[str, int]
    truth: Mapping[_Image, str]
    correct: Mapping[_Image, bool]


def read_runs(folders: Sequence[Path], natural: Sequence[Path] = ()) -> list[ModelRuns]:
    """Read runs and group them by model, in the order in which models are first named.

    Args:
        folders: runs without shift, and under corruptions of the same images or of some of them.
        natural: runs on other test sets, such as ImageNet-A; each is a shift with the name of its task.

    Raises:
        InputError: images or their true classes differ between models; the images under a corruption are not among
            those without; a run is empty; or a model has duplicate, missing or extra shifts, or runs with different
            weights or settings.
    """
    runs = [*(_read(folder) for folder in folders), *(_read(folder, natural=True) for folder in natural)]
    found: dict[str, dict[tuple[str, int], _RunHits]] = {}
    firsts: dict[tuple[str, int], _RunHits] = {}
    truth: dict[_Image, str] = {}
    for run in runs:
        of_model = found.setdefault(run.spec.model, {})
        if (second := of_model.setdefault(run.shift, run)) is not run:
            raise InputError(f"{run.folder} is a second run of {run.spec.model}, as {second.folder}")
        of_first = next(iter(of_model.values()))
        of_first.spec.check_comparable(run.spec, of_first.folder, run.folder, _OF_TASKS if run.natural else ())
        before = firsts.setdefault(run.shift, run)
        if not run.truth or set(run.truth) != set(before.truth):
            raise InputError(
                f"{run.folder} has results for {len(run.truth)} images, which are not the same as those of "
                f"{before.folder}"
            )
        if differ := [image for image, name in run.truth.items() if truth.setdefault(image, name) != name]:
            raise InputError(f"{run.folder} has another true class for {differ[0][1]} than a run before it")
    for model, by in found.items():
        if set(by) != set(firsts) or PLAIN not in by or len(by) < 2:
            under = ", ".join(_named(*shift) for shift in sorted(by))
            raise InputError(
                f"{model} was evaluated under the shifts {under}: each model needs a run without any, and others under "
                "the same shifts"
            )
    for run in runs:
        if unknown := [image for image in run.truth if not image[0] and image not in firsts[PLAIN].truth]:
            raise InputError(f"{run.folder} has the image {unknown[0][1]}, which the runs without shift do not have")
    return [_joined(by, list(truth)) for by in found.values()]


def _read(folder: Path, natural: bool = False) -> _RunHits:
    spec = read_spec(folder)
    if natural and spec.shift:
        raise InputError(
            f"{folder} is a run under {spec.shift}: natural shifts are test sets of their own, without corruption"
        )
    done = with_status(read_rows(folder, ["id", "truth", "prediction", "status"]), "done")
    check_labelled(folder, done)
    if natural:
        shift = spec.task or spec.source, NATURAL
    else:
        parsed = Corruption.parse(spec.shift) if spec.shift else None
        shift = PLAIN if parsed is None else (parsed.name, parsed.severity)
    rows = {(shift[0] if natural else "", row.id): row for row in table_to_rows(done)}
    truth = {image: str(row.truth) for image, row in rows.items()}
    return _RunHits(folder, spec, natural, shift, truth, {image: row.is_correct for image, row in rows.items()})


def _named(shift: str, severity: int) -> str:
    return f"{shift}:{severity}" if severity else shift or "none"


def _joined(by: Mapping[tuple[str, int], _RunHits], images: Sequence[_Image]) -> ModelRuns:
    """Return the runs of one model, with hits in the order of `images`."""

    def hits(run: _RunHits) -> Hits:
        return np.array([run.correct.get(image, np.nan) for image in images], dtype=float)

    shifts: dict[str, dict[int, Hits]] = {}
    for (name, severity), run in sorted(by.items()):
        if (name, severity) != PLAIN:
            shifts.setdefault(name, {})[severity] = hits(run)
    spec = by[PLAIN].spec
    return ModelRuns(spec.model, spec.model_kind == "supervised", hits(by[PLAIN]), shifts)


def measure_robustness(runs: Sequence[ModelRuns], seed: int = 0) -> list[Robustness]:
    """Return the robustness of each model; corruption errors are relative to the first.

    Args:
        runs: runs on the same images, under the same shifts.
        seed: seed of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    count = len(runs[0].plain)
    line = [i for i, r in enumerate(runs) if r.supervised]
    mean: list[NDArray[np.float64]] = []
    above: list[NDArray[np.float64]] = []
    for some in [1] + [CHUNK] * (RESAMPLES // CHUNK):  # first the observed data, with equal weights
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


def _shares(hits: Sequence[Hits], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Return the accuracies (R, K) of K models with hits (M,) on the same images, under weights of images (R, M)."""
    there = ~np.isnan(hits[0])
    of_there = weights[:, there]
    shares: NDArray[np.float64] = of_there @ np.array(hits)[:, there].T / of_there.sum(1, keepdims=True)
    return shares


def _accuracy(hits: Hits) -> Interval:
    return share_interval(torch.from_numpy(hits[~np.isnan(hits)] == 1))


def _errors(by: Mapping[int, Hits]) -> float:
    """Return the error summed over severities."""
    return float(sum(1 - np.nanmean(hits) for hits in by.values()))


def _above_the_line(
    plain: NDArray[Any], corrupted: NDArray[Any], line: list[int], weights: NDArray[Any], count: int
) -> NDArray[np.float64]:
    """Return how far the accuracy under shift of each model is above the line through some of them, (R, K).

    Args:
        plain: accuracy without shift, (R, K).
        corrupted: accuracy under shift, (R, K).
        line: indices of the L models that the line goes through.
        weights: weights of these models, (R, L).
        count: number of images; accuracies of 0 and 1 are moved inside by half an image.
    """
    x, y = (logit(np.clip(share, 0.5 / count, 1 - 0.5 / count)) for share in (plain, corrupted))
    above: NDArray[np.float64] = corrupted - expit(_line(x[:, line], y[:, line], x, weights))
    return above


def _line(x: NDArray[Any], y: NDArray[Any], at: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """Return the values at these x of the weighted least-squares line, each along the last axis."""
    weights = weights / weights.sum(-1, keepdims=True)
    mean_x, mean_y = ((weights * of).sum(-1, keepdims=True) for of in (x, y))
    spread = (weights * (x - mean_x) ** 2).sum(-1, keepdims=True)
    slope = (weights * (x - mean_x) * (y - mean_y)).sum(-1, keepdims=True) / np.maximum(spread, 1e-12)
    found: NDArray[np.float64] = mean_y + slope * (at - mean_x)
    return found


def _interval(values: NDArray[Any]) -> Interval:
    """Return the interval of a statistic, `values[0]`, from its resamples."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Interval(float(values[0]), float(low), float(high))


def draw_severities(models: Sequence[Robustness], file: Path) -> None:
    """Draw accuracy against severity, with a panel for each shift that has severities.

    Raises:
        InputError: no shift has severities; matplotlib is not installed, or the file cannot be written.
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
    """Draw accuracy under shift against accuracy without, in logits, and the line through supervised models (figure 7).

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    supervised = [m for m in models if m.supervised]
    if len(supervised) >= FEWEST:
        x, y = (
            logit(_inside(shares))
            for shares in zip(*((m.accuracy.value, m.mean.value) for m in supervised), strict=True)
        )
        ends = logit(_inside([m.accuracy.value for m in models]))
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
    """Return the shares moved to where logits are finite."""
    return np.clip(shares, 0.002, 0.998)


def _styles(plt: Any, models: Sequence[Robustness]) -> list[tuple[Any, str]]:
    """Return a color and a marker for each model; models that are not supervised stand out."""
    cool, line = plt.get_cmap("winter"), [m.model for m in models if m.supervised]
    others = [m.model for m in models if not m.supervised]
    return [
        (cool(line.index(m.model) / len(line)), "osD^v<>pP"[line.index(m.model) % 9])
        if m.supervised
        else (f"C{(1, 3, 4, 5, 6)[others.index(m.model) % 5]}", "*")
        for m in models
    ]
