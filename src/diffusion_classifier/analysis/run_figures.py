"""Pictures of the answers of a run: what is confused with what, what took how long, what each time says.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

from collections import Counter
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
from ..runs.spec import RunSpec, read_spec, refuse_captions
from ..runs.store import read_rows, refuse_unlabelled, with_status
from ..search.posterior import is_correct
from .calibration import true_classes
from .calibration_figure import draw_reliability
from .plotting import pyplot, save

NUM_NAMED = 30
"""Classes that have room for their names."""
NUM_BINS = 20
"""Of the times."""
PAIRS, EXAMPLES = 6, 6
"""Confused pairs that are shown, and images of each."""


def draw_confusion(axes: Any, truth: NDArray[Any], answer: NDArray[Any], names: Sequence[str]) -> None:
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for t, a in zip(truth, answer, strict=True):
        if a is not None:  # as where classes tie
            counts[index[t], index[a]] += 1
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="true class")
    if len(names) <= NUM_NAMED:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
    if len(names) <= 12:
        for (i, j), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    j, i, f"{count:.0f}", ha="center", va="center", color="w" if shares[i, j] > 0.5 else "k", fontsize=8
                )


def draw_evaluations(axes: Any, spent: NDArray[Any], right: NDArray[np.bool_]) -> None:
    """Of the images that took at most so many evaluations: their share, and the accuracy among them."""
    order = np.argsort(spent, kind="stable")
    share = np.arange(1, len(spent) + 1) / len(spent)
    accuracy = np.cumsum(right[order]) / np.arange(1, len(spent) + 1)
    axes.step(spent[order], share, where="post", label="share of the images")
    axes.step(spent[order], accuracy, where="post", label="accuracy among these")
    axes.set(xlabel="evaluations of an image, at most", xscale="log", ylim=(0, 1.02))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_times(axes: Any, done: pa.Table, truth: NDArray[Any], spec: RunSpec) -> None:
    """How far the true class is ahead of the best of the others at each time, with the 95 % interval of the mean.

    Of runs in which every image has every draw: where hard images alone have late draws, times are not alike.
    """
    index = {name: i for i, name in enumerate(spec.class_names)}
    leads: list[list[float]] = [[] for _ in range(NUM_BINS)]
    for row, name in zip(done.select(["errors", "timesteps", "posterior"]).to_pylist(), truth, strict=True):
        errors, k = np.array(row["errors"], dtype=np.float64), index[name]
        rivals = np.array(row["posterior"])
        rivals[k] = -1
        lead = errors[int(rivals.argmax())] - errors[k]
        bins = np.minimum(np.array(row["timesteps"]) / spec.num_timesteps * NUM_BINS, NUM_BINS - 1).astype(int)
        for b in np.unique(bins):  # draws of one image are not independent
            leads[b].append(float(lead[bins == b].mean()))
    x = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    there = [i for i, values in enumerate(leads) if len(values) > 1]
    mean, low, _ = np.array([mean_interval(torch.tensor(leads[i])) for i in there]).T
    axes.axhline(0, color="gray", lw=1)
    axes.errorbar(x[there], mean, mean - low, fmt="o-", ms=4, lw=1.2)
    axes.set(
        xlabel="time t/T: no noise to pure noise", ylabel="error of the best other class less that of the true one"
    )
    axes.grid(alpha=0.3)


def answers_of(folder: Path) -> tuple[RunSpec, pa.Table]:
    """A run over classes, and its rows that are done.

    Raises:
        InputError: no run, one of captions, of images without labels, or without answers.
    """
    spec, rows = read_spec(folder), read_rows(folder)
    refuse_captions(folder, spec, "this figure")
    refuse_unlabelled(folder, rows)
    done = with_status(rows, "done")
    if not len(done):
        raise InputError(f"no image of {folder} is done yet")
    return spec, done


def draw_answers(kind: str, folder: Path, file: Path) -> None:
    """The "confusion" or the "reliability" of a run's answers.

    Raises:
        InputError: as `answers_of`.
    """
    spec, done = answers_of(folder)
    truth, answer = (np.array(done[name].to_pylist()) for name in ("label", "prediction"))
    fig, ax = pyplot().subplots(figsize=(5.5, 4.6), layout="constrained")
    if kind == "confusion":
        draw_confusion(ax, truth, answer, spec.class_names)
    else:
        draw_reliability(ax, np.array([max(p) for p in done["posterior"].to_pylist()]), truth == answer)
    save(fig, file)


def confused(folder: Path) -> list[tuple[str, str, list[str]]]:
    """Pairs of classes that a run confuses, most often first: true class, answer, ids of images, surest first.

    Raises:
        InputError: as `answers_of`.
    """
    _, done = answers_of(folder)
    rows = done.select(["id", "label", "prediction", "posterior"]).to_pylist()
    wrong = [row for row in rows if row["prediction"] not in (None, row["label"])]
    wrong.sort(key=lambda row: -max(row["posterior"]))
    counts = Counter((row["label"], row["prediction"]) for row in wrong)
    return [
        (*pair, [row["id"] for row in wrong if (row["label"], row["prediction"]) == pair])
        for pair, _ in counts.most_common()
    ]


def draw_confused(pairs: Sequence[tuple[str, str, list[str]]], source: LabelledSource, file: Path) -> None:
    """The pairs that are confused most, with images of each.

    Args:
        pairs: as `confused` has them.
        source: the images.
        file: to write.

    Raises:
        InputError: nothing is confused; an image that is not there, or cannot be read.
    """
    if not pairs:
        raise InputError("no answer is wrong, of images with an answer: nothing is confused")
    shown, position = pairs[:PAIRS], {id_: i for i, id_ in enumerate(source.ids)}
    if strange := [id_ for _, _, ids in shown for id_ in ids if id_ not in position]:
        raise InputError(f"{source.name} has no image {strange[0]!r}: say where the images of the run are, --data")
    size = (1.2 * EXAMPLES, 1.5 * len(shown))
    fig, axes = pyplot().subplots(len(shown), EXAMPLES, figsize=size, layout="constrained", squeeze=False)
    for row, (truth, answer, ids) in zip(axes, shown, strict=True):
        for ax, id_ in zip(row, ids, strict=False):
            ax.imshow(load_image(source.read(position[id_]), id_).image)
        for ax in row:
            ax.set_axis_off()
        row[0].set_title(f"{truth}, taken for {answer}: {len(ids)}", fontsize=8, loc="left")
    save(fig, file)


def _share_of(right: torch.Tensor, there: torch.Tensor) -> Interval:
    """Of those draws (M, N) of M images that are there; draws of one image are not independent."""
    counts = there.sum(1)
    if bool((counts <= 1).all()):
        return share_interval(right[there])
    return mean_interval(((right & there).sum(1) / counts)[counts > 0])


def draw_single_times(folder: Path, file: Path) -> None:
    """The paper's figure 3: accuracy of one draw alone, against its time, with 95 % intervals.

    Draws at nearly the same time, a twentieth of the schedule, are taken together; where an image has several of them,
    the interval is of the mean over images of its share.

    Raises:
        InputError: a run that kept no errors, or eliminated classes; images without labels.
    """
    tables = read_tables(folder)
    refuse_unlabelled(folder, read_rows(folder, ["label"]))
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
    ax.set(xlabel="time t/T: no noise to pure noise", ylabel="accuracy of a single draw", ylim=(0, 1))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    save(fig, file)
