"""Figures of a run: confusion matrix, evaluations per image, and how well each timestep separates classes.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..data.images import load_image
from ..data.labelled import LabelledSource
from ..errors import InputError
from ..metrics import Interval, mean_interval, share_interval
from ..runs.error_tables import read_tables
from ..runs.row import table_to_rows
from ..runs.spec import RunSpec, check_class_run, read_spec
from ..runs.store import check_labelled, read_rows, with_status
from ..search.posterior import is_correct
from .calibration import true_classes
from .calibration_figure import draw_reliability
from .plotting import pyplot, save

NUM_NAMED = 30
"""Maximum number of classes whose names are written at the axes."""
NUM_BINS = 20
"""Number of bins of the timesteps."""
PAIRS, EXAMPLES = 6, 6
"""Number of confused pairs that are shown, and of images per pair."""


def draw_confusion(axes: Any, truth: NDArray[Any], prediction: NDArray[Any], names: Sequence[str]) -> None:
    """Draw a confusion matrix with rows normalised to 1.

    Args:
        axes: of matplotlib.
        truth: true class of each image, (M,).
        prediction: predicted class of each image, (M,); None for a tie.
        names: K class names.
    """
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for t, p in zip(truth, prediction, strict=True):
        if p is not None:
            counts[index[t], index[p]] += 1
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(names) <= NUM_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
    if len(names) <= 12:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    j, i, f"{count:.0f}", ha="center", va="center", color="w" if shares[i, j] > 0.5 else "k", fontsize=8
                )


def draw_evaluations(axes: Any, spent: NDArray[Any], correct: NDArray[np.bool_]) -> None:
    """Draw the share of images that took at most x evaluations, and the accuracy on these images.

    Args:
        axes: of matplotlib.
        spent: number of evaluations of each image, (M,).
        correct: whether each prediction is correct, (M,).
    """
    order = np.argsort(spent, kind="stable")
    share = np.arange(1, len(spent) + 1) / len(spent)
    accuracy = np.cumsum(correct[order]) / np.arange(1, len(spent) + 1)
    axes.step(spent[order], share, where="post", label="share of images")
    axes.step(spent[order], accuracy, where="post", label="accuracy on these images")
    axes.set(xlabel="maximum number of evaluations per image", xscale="log", ylim=(0, 1.02))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_times(axes: Any, done: pa.Table, truth: NDArray[Any], spec: RunSpec) -> None:
    """Draw the lead of the true class over the best other class at each timestep, with the 95% interval of the mean.

    Every image of the run must have every draw: if only hard images had late draws, timesteps could not be compared.

    Args:
        axes: of matplotlib.
        done: rows of the run with errors, timesteps and posterior.
        truth: true class of each row, (M,).
        spec: spec of the run.
    """
    index = {name: i for i, name in enumerate(spec.class_names)}
    leads: list[list[float]] = [[] for _ in range(NUM_BINS)]
    for row, name in zip(table_to_rows(done.select(["id", "errors", "timesteps", "posterior"])), truth, strict=True):
        errors, k = np.array(row.errors, dtype=np.float64), index[name]
        others = np.array(row.posterior)
        others[k] = -1
        lead = errors[int(others.argmax())] - errors[k]
        bins = np.minimum(np.array(row.timesteps) / spec.num_timesteps * NUM_BINS, NUM_BINS - 1).astype(int)
        for b in np.unique(bins):  # draws of one image are not independent
            leads[b].append(float(lead[bins == b].mean()))
    x = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    there = [i for i, values in enumerate(leads) if len(values) > 1]
    mean, low, _ = np.array([mean_interval(torch.tensor(leads[i])) for i in there]).T
    axes.axhline(0, color="gray", lw=1)
    axes.errorbar(x[there], mean, mean - low, fmt="o-", ms=4, lw=1.2)
    axes.set(xlabel="timestep t/T (0: no noise, 1: pure noise)", ylabel="error: best other class - true class")
    axes.grid(alpha=0.3)


def read_predictions(folder: Path) -> tuple[RunSpec, pa.Table]:
    """Read the spec of a run over classes, and its rows that are done.

    Raises:
        InputError: the folder holds no run, the run is over captions or unlabelled images, or no image is done.
    """
    spec, rows = read_spec(folder), read_rows(folder)
    check_class_run(folder, spec, "this figure")
    check_labelled(folder, rows)
    done = with_status(rows, "done")
    if not len(done):
        raise InputError(f"no image of {folder} is done yet")
    return spec, done


def draw_predictions(kind: str, folder: Path, file: Path) -> None:
    """Draw the confusion matrix ("confusion") or the reliability diagram ("reliability") of a run.

    Raises:
        InputError: as `read_predictions`.
    """
    spec, done = read_predictions(folder)
    truth, prediction = (np.array(done[name].to_pylist()) for name in ("truth", "prediction"))
    fig, ax = pyplot().subplots(figsize=(5.5, 4.6), layout="constrained")
    if kind == "confusion":
        draw_confusion(ax, truth, prediction, spec.class_names)
    else:
        draw_reliability(ax, np.array([max(p) for p in done["posterior"].to_pylist()]), truth == prediction)
    save(fig, file)


def confused_pairs(folder: Path) -> list[tuple[str, str, list[str]]]:
    """Return the pairs of classes that a run confuses, most frequent first.

    Returns:
        For each pair the true class, the predicted class, and the ids of the images, highest probability first.

    Raises:
        InputError: as `read_predictions`.
    """
    _, done = read_predictions(folder)
    rows = table_to_rows(done.select(["id", "truth", "prediction", "posterior"]))
    wrong = sorted((row for row in rows if row.prediction and not row.is_correct), key=lambda row: -row.score)
    ids: dict[tuple[str, str], list[str]] = {}
    for row in wrong:
        ids.setdefault((str(row.truth), str(row.prediction)), []).append(row.id)
    return [(*pair, own) for pair, own in sorted(ids.items(), key=lambda item: -len(item[1]))]


def draw_confused(pairs: Sequence[tuple[str, str, list[str]]], source: LabelledSource, file: Path) -> None:
    """Draw images of the most frequently confused pairs.

    Args:
        pairs: as `confused_pairs` returns them.
        source: the images.
        file: file to write.

    Raises:
        InputError: there are no pairs; an image is missing or cannot be read.
    """
    if not pairs:
        raise InputError("no prediction is wrong: there are no confused classes to draw")
    shown, position = pairs[:PAIRS], {id_: i for i, id_ in enumerate(source.ids)}
    if missing := [id_ for _, _, ids in shown for id_ in ids if id_ not in position]:
        raise InputError(f"{source.name} has no image {missing[0]!r}: say where the images of the run are, --data")
    size = (1.2 * EXAMPLES, 1.5 * len(shown))
    fig, axes = pyplot().subplots(len(shown), EXAMPLES, figsize=size, layout="constrained", squeeze=False)
    for row, (truth, prediction, ids) in zip(axes, shown, strict=True):
        for ax, id_ in zip(row, ids, strict=False):
            ax.imshow(load_image(source.read(position[id_]), id_).image)
        for ax in row:
            ax.set_axis_off()
        row[0].set_title(f"{truth} predicted as {prediction}: {len(ids)}", fontsize=8, loc="left")
    save(fig, file)


def _share_of(right: torch.Tensor, there: torch.Tensor) -> Interval:
    """Return the share of right draws (M, N) among those of a bin; draws of one image are not independent."""
    counts = there.sum(1)
    if bool((counts <= 1).all()):
        return share_interval(right[there])
    return mean_interval(((right & there).sum(1) / counts)[counts > 0])


def draw_single_times(folder: Path, file: Path) -> None:
    """Draw the accuracy of single draws against their timestep, with 95% intervals (figure 3 of the paper).

    Draws are binned into twentieths of the schedule. If an image has several draws in a bin, the interval is that of
    the mean over images of its share of correct draws.

    Raises:
        InputError: the run stored no errors or eliminated classes, or its images have no labels.
    """
    tables = read_tables(folder)
    check_labelled(folder, read_rows(folder, ["truth"]))
    errors, truth = tables.complete(), true_classes(tables)
    assert truth is not None
    right = is_correct(errors, truth[:, None])
    bins = (tables.fractions() * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    there = [b for b in range(NUM_BINS) if bool((bins == b).any())]
    shares = [_share_of(right, bins == b) for b in there]
    share, low, high = (torch.tensor(values).clamp(0, 1) for values in zip(*shares, strict=True))
    fig, ax = pyplot().subplots(figsize=(5.5, 3.6), layout="constrained")
    x = (torch.tensor(there) + 0.5) / NUM_BINS
    ax.plot(x, share, "o-", ms=4)
    ax.fill_between(x, low, high, alpha=0.15)
    ax.axhline(1 / errors.shape[1], color="gray", lw=1, ls=":", label="chance")
    ax.set(xlabel="timestep t/T (0: no noise, 1: pure noise)", ylabel="accuracy of a single draw", ylim=(0, 1))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    save(fig, file)
