"""What the rows of runs say: accuracy, calibration, cost, and whether one run is better than another.

Shape legend: M images, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

from ..baselines.contrastive import Contrastive
from ..errors import InputError
from ..files import write_durably
from ..metrics import Interval, difference_interval, expected_calibration_error, share_interval
from .pair_scores import Composition, compose, is_right, pairs_of
from .spec import RunSpec, read_spec
from .store import SUMMARY, read_rows, with_status

COLUMNS = [
    "id", "label", "prediction", "posterior", "undecided", "num_evaluations", "cost", "seconds", "status", "reason",
    "candidates", "tag", "fits",
]  # fmt: skip
"""Of the rows, that a summary is made of."""
SHOWN_FAILURES = 5
RESAMPLES = 2000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Summary:
    """Of one run. Shares come with the ends of their 95 % intervals; None where no image is done, or has a label.

    Args:
        run: its folder.
        task: its name.
        model: as it was named.
        metric: by which the task is reported: "accuracy" or "mean_per_class".
        strategy: of the search.
        num_images: wanted.
        num_done: of which there is an answer.
        num_failed: of which there is none, for a reason that is in the row; they count in nothing below.
        reasons: the first of these, as "ID: reason".
        accuracy: share of right answers.
        mean_per_class: mean over classes of the share of right answers; by bootstrap.
        top5: share of images whose true class is among the five of highest posterior.
        calibration_error: ECE of the answer's posterior, 15 bins.
        undecided: share of images whose answer the strategy could not tell from others.
        num_evaluations: mean of an image.
        cost: the same in full predictions.
        seconds: mean from an image's first prediction to its last; images in flight share them.
        per_class: class → share of right answers.
        composition: of images with captions of their own, for which there is no mean per class, nor a best five.
    """

    run: str
    task: str | None
    model: str
    metric: str
    strategy: str
    num_images: int
    num_done: int
    num_failed: int
    reasons: tuple[str, ...] = ()
    accuracy: Interval | None = None
    mean_per_class: Interval | None = None
    top5: Interval | None = None
    calibration_error: float | None = None
    undecided: float | None = None
    num_evaluations: float | None = None
    cost: float | None = None
    seconds: float | None = None
    per_class: dict[str, float] | None = None
    composition: Composition | None = None


@dataclass(frozen=True)
class Comparison:
    """Of a second run with a first, on the images that both have an answer for; None what needs labels without any.

    Args:
        first: folder of the first.
        second: folder of the second.
        num_images: in common.
        num_pairs: of images, which are compared in their place, by text score, where images come in pairs.
        difference: in accuracy, or in text score, second less first, with its 95 % interval (Agresti and Min 2005).
        bootstrap: the ends of the same interval by bootstrap.
        only_first: images that the first alone got right.
        only_second: images that the second alone got right.
        p_value: of McNemar's exact test that both are equally good.
        other_label: share of images with another answer.
    """

    first: str
    second: str
    num_images: int
    difference: Interval | None
    bootstrap: tuple[float, float] | None
    only_first: int | None
    only_second: int | None
    p_value: float | None
    other_label: Interval
    num_pairs: int | None = None


def summarize(folder: Path) -> Summary:
    """What the rows of a run say; the run may still be at work.

    Raises:
        InputError: no run, or a shard that cannot be read.
    """
    return summary_of(folder, read_spec(folder), read_rows(folder, COLUMNS))


def summary_of(folder: Path, spec: RunSpec, rows: pa.Table) -> Summary:
    """What these rows of a run say.

    Args:
        folder: of the run.
        spec: of the run.
        rows: with `COLUMNS` at least.
    """
    done, failed = with_status(rows, "done"), with_status(rows, "failed")
    about: dict[str, Any] = {
        "run": str(folder),
        "task": spec.task,
        "model": spec.model,
        "metric": spec.metric,
        "strategy": spec.strategy,
        "num_images": spec.num_images,
        "num_done": len(done),
        "num_failed": len(failed),
        "reasons": tuple(f"{row['id']}: {row['reason']}" for row in failed.slice(0, SHOWN_FAILURES).to_pylist()),
    }
    if not len(done):
        return Summary(**about)
    about |= {
        "undecided": float(np.mean([bool(labels) for labels in done["undecided"].to_pylist()])),
        "num_evaluations": float(np.mean(done["num_evaluations"].to_numpy())),
        "cost": float(np.mean(done["cost"].to_numpy())),
        "seconds": float(np.mean(done["seconds"].to_numpy())),
    }
    if spec.kind != "classes":
        return Summary(**about, **_of_captions(spec, rows))
    if done["label"].null_count:
        return Summary(**about)
    truth, answer = _indices(done["label"], spec), _indices(done["prediction"], spec)
    right = truth == answer
    posterior = torch.from_numpy(_matrix(done["posterior"], len(spec.class_names)))
    best = posterior.topk(min(5, posterior.shape[1])).indices
    in_best = (best == torch.from_numpy(truth)[:, None]) & (posterior.gather(1, best) > 0)  # eliminated ones are not in
    hits = torch.from_numpy(right)
    per_class = _per_class(truth, right, len(spec.class_names))
    return Summary(
        **about,
        accuracy=share_interval(hits),
        mean_per_class=Interval(
            float(np.nanmean(per_class)), *_bootstrap_per_class(truth, right, len(spec.class_names))
        ),
        top5=share_interval(in_best.any(1)),
        calibration_error=expected_calibration_error(posterior.amax(1), hits),
        per_class={
            name: float(share) for name, share in zip(spec.class_names, per_class, strict=True) if share == share
        },
    )


def _of_captions(spec: RunSpec, rows: pa.Table) -> dict[str, Any]:
    told = rows.select(["id", "label", "prediction", "status", "candidates", "tag", "fits", "posterior"]).to_pylist()
    done = [row for row in told if row["status"] == "done"]
    hits = torch.tensor([is_right(row) for row in done])
    best = torch.tensor([max(row["posterior"]) for row in done], dtype=torch.float64)
    note = ""
    if spec.kind == "pairs":
        note = "not known: it needs the error of the null condition, see --unconditional"
        if spec.unconditional:
            note = "the error of the null condition less that of the caption"
        elif spec.strategy == Contrastive.strategy:
            note = "the model's logits"
    return {
        "accuracy": share_interval(hits),
        "calibration_error": expected_calibration_error(best, hits),
        "composition": compose(told, spec.kind == "pairs", note),
    }


def write_summary(folder: Path) -> Summary:
    """`summarize`, kept in the folder."""
    summary = summarize(folder)
    try:
        write_durably(folder / SUMMARY, json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n")
    except OSError as e:
        raise InputError(f"{folder / SUMMARY} cannot be written: {e}") from e
    return summary


def compare(first: Path, second: Path) -> Comparison:
    """Whether the second run is better than the first, image by image.

    Raises:
        InputError: no runs, runs on other images or classes, or none in common.
    """
    specs = [read_spec(folder) for folder in (first, second)]
    if specs[0].data != specs[1].data:
        raise InputError(f"{first} and {second} are of different data and cannot be compared image by image")
    rows = [
        with_status(read_rows(folder, ["id", "label", "prediction", "status"]), "done") for folder in (first, second)
    ]
    return compare_rows(str(first), str(second), rows, paired=specs[0].kind == "pairs")


def compare_rows(first: str, second: str, rows: Sequence[pa.Table], paired: bool = False) -> Comparison:
    """`compare` of rows that are at hand, of two runs.

    Args:
        first: what the first is called.
        second: and the second.
        rows: of both, done, with id, label, prediction and status.
        paired: whether images come in pairs, which are compared in their place.

    Raises:
        InputError: no image in common.
    """
    told = [part.select(["id", "label", "prediction", "status"]).to_pylist() for part in rows]
    tables = [pairs_of(part) if paired else {row["id"]: (row,) for row in part} for part in told]
    common = sorted(tables[0].keys() & tables[1].keys())
    if not common:
        raise InputError(f"{first} and {second} have no {'pair' if paired else 'image'} in common")
    answers = [[[row["prediction"] for row in table[i]] for i in common] for table in tables]
    other = torch.tensor([one != two for one, two in zip(*answers, strict=True)])
    if any(row["label"] is None for row in tables[0][common[0]]):
        return Comparison(first, second, len(common), None, None, None, None, None, share_interval(other))
    a, b = (torch.tensor([all(map(is_right, table[i])) for i in common]) for table in tables)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p_value = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return Comparison(
        first, second, len(common) * (2 if paired else 1), difference_interval(b, a),
        _bootstrap(b.double() - a.double()), only_a, only_b, float(p_value), share_interval(other),
        len(common) if paired else None,
    )  # fmt: skip


def _indices(names: Any, spec: RunSpec) -> NDArray[np.int64]:
    """Indices of the classes of that name (M,); -1 where there is no name, as of a tie."""
    index: dict[str | None, int] = {name: i for i, name in enumerate(spec.class_names)} | {None: -1}
    return np.array([index[name] for name in names.to_pylist()])


def _matrix(column: Any, width: int) -> NDArray[np.float64]:
    return np.array(column.combine_chunks().flatten(), dtype=np.float64).reshape(-1, width)


def _per_class(truth: NDArray[np.int64], right: NDArray[np.bool_], num_classes: int) -> NDArray[np.float64]:
    """Share of right answers of each class, (K,), NaN where it has no image."""
    count = np.bincount(truth, minlength=num_classes)
    hits = np.bincount(truth, weights=right, minlength=num_classes)
    shares: NDArray[np.float64] = np.divide(hits, count, out=np.full(num_classes, np.nan), where=count > 0)
    return shares


def _bootstrap_per_class(truth: NDArray[np.int64], right: NDArray[np.bool_], num_classes: int) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean over classes, images being drawn within their class.

    Of n images of which a share p is right, a resample has Binomial(n, p) right ones: no image need be drawn.
    """
    count = np.bincount(truth, minlength=num_classes)
    there = count > 0
    share = _per_class(truth, right, num_classes)[there]
    rng = np.random.default_rng(0)
    means = (rng.binomial(count[there], share, (RESAMPLES, int(there.sum()))) / count[there]).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _bootstrap(values: Tensor) -> tuple[float, float]:
    """Ends of the 95 % interval of the mean of values (M,) in {-1, 0, 1}, images being drawn again.

    How often each of the three is drawn is multinomial.
    """
    counts = np.array([float((values == value).sum()) for value in (-1, 0, 1)])
    drawn = np.random.default_rng(0).multinomial(len(values), counts / counts.sum(), RESAMPLES)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / len(values), [0.025, 0.975])
    return float(low), float(high)
