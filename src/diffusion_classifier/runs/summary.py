"""Metrics of runs: accuracy, calibration, cost, and paired comparisons of two runs.

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

from ..errors import InputError
from ..files import write_durably
from ..metrics import Interval, difference_interval, expected_calibration_error, share_interval
from .pair_scores import Composition, compose, pairs_of
from .row import SUMMARY_COLUMNS, ResultRow, table_to_rows
from .spec import RunSpec, read_spec
from .store import SUMMARY, read_rows, with_status

SHOWN_FAILURES = 5
RESAMPLES = 2000
"""Number of bootstrap resamples."""
_COMPARED = ("id", "truth", "prediction", "status")


@dataclass(frozen=True)
class Summary:
    """Metrics of one run. Shares have 95% intervals; a value is None if no image is done, or no true label is known.

    Args:
        run: folder of the run.
        task: name of the task.
        model: name of the model, as given.
        metric: metric that the task is reported by: "accuracy" or "mean_per_class".
        strategy: search strategy.
        num_images: number of images to evaluate.
        num_done: number of images with a result.
        num_failed: number of images with an error record, which count in no metric.
        reasons: the first error records, as "ID: reason".
        accuracy: share of correct predictions.
        mean_per_class: mean over classes of the share of correct predictions; interval by bootstrap.
        top5: share of images whose true class is among the five of highest posterior.
        calibration_error: ECE of the posterior of the prediction, 15 bins.
        undecided: share of images whose prediction the search could not tell from another candidate.
        num_evaluations: mean number of evaluations per image.
        cost: mean cost per image in full predictions.
        seconds: mean seconds per image, from its first prediction to its last; images that are evaluated together share
            them.
        per_class: class → share of correct predictions.
        composition: scores of caption tasks, which have neither a mean per class nor a top 5.
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
    """Comparison of two runs on the images that both have a result for. Fields that need true labels are None without.

    Args:
        first: folder of the first run.
        second: folder of the second run.
        num_images: number of common images.
        num_pairs: number of pairs, if images come in pairs: then pairs are compared, by text score; else None.
        difference: accuracy, or text score, of the second run less that of the first, with its 95% interval (Agresti
            and Min 2005).
        bootstrap: ends of the same interval by bootstrap.
        only_first: number of images that only the first run predicts correctly.
        only_second: number of images that only the second run predicts correctly.
        p_value: of McNemar's exact test that both runs are equally accurate.
        disagreement: share of images with different predictions.
    """

    first: str
    second: str
    num_images: int
    difference: Interval | None
    bootstrap: tuple[float, float] | None
    only_first: int | None
    only_second: int | None
    p_value: float | None
    disagreement: Interval
    num_pairs: int | None = None


def summarize(folder: Path) -> Summary:
    """Compute the metrics of a run, which may be unfinished.

    Raises:
        InputError: the folder holds no run, or a shard cannot be read.
    """
    return summary_of(folder, read_spec(folder), read_rows(folder, SUMMARY_COLUMNS))


def summary_of(folder: Path, spec: RunSpec, rows: pa.Table) -> Summary:
    """Compute the metrics of these rows of a run.

    Args:
        folder: folder of the run.
        spec: spec of the run.
        rows: with at least `SUMMARY_COLUMNS`.
    """
    done, failed = with_status(rows, "done"), with_status(rows, "failed")
    reasons = table_to_rows(failed.select(["id", "reason"]).slice(0, SHOWN_FAILURES))
    about: dict[str, Any] = {
        "run": str(folder),
        "task": spec.task,
        "model": spec.model,
        "metric": spec.metric,
        "strategy": spec.strategy,
        "num_images": spec.num_images,
        "num_done": len(done),
        "num_failed": len(failed),
        "reasons": tuple(f"{row.id}: {row.reason}" for row in reasons),
    }
    if not len(done):
        return Summary(**about)
    about["undecided"] = float(np.mean([bool(names) for names in done["undecided"].to_pylist()]))
    about |= {name: float(np.mean(done[name].to_numpy())) for name in ("num_evaluations", "cost", "seconds")}
    if spec.kind != "classes":
        return Summary(**about, **_of_captions(spec, rows))
    if done["truth"].null_count:
        return Summary(**about)
    return Summary(**about, **_of_classes(spec, done))


def _of_classes(spec: RunSpec, done: pa.Table) -> dict[str, Any]:
    """Return the metrics that need the true classes."""
    num_classes = len(spec.class_names)
    truth, prediction = _indices(done["truth"], spec), _indices(done["prediction"], spec)
    correct = truth == prediction
    posterior = torch.from_numpy(_matrix(done["posterior"], num_classes))
    best = posterior.topk(min(5, num_classes)).indices
    in_best = (best == torch.from_numpy(truth)[:, None]) & (posterior.gather(1, best) > 0)  # 0 if eliminated
    hits = torch.from_numpy(correct)
    per_class = _per_class(truth, correct, num_classes)
    return {
        "accuracy": share_interval(hits),
        "mean_per_class": Interval(float(np.nanmean(per_class)), *_bootstrap_per_class(truth, correct, num_classes)),
        "top5": share_interval(in_best.any(1)),
        "calibration_error": expected_calibration_error(posterior.amax(1), hits),
        "per_class": {
            name: float(share) for name, share in zip(spec.class_names, per_class, strict=True) if share == share
        },
    }


def _of_captions(spec: RunSpec, rows: pa.Table) -> dict[str, Any]:
    """Return the metrics of a caption task."""
    all_rows = table_to_rows(rows.select(SUMMARY_COLUMNS))
    done = [row for row in all_rows if row.done]
    hits = torch.tensor([row.is_correct for row in done])
    scores = torch.tensor([row.score for row in done], dtype=torch.float64)
    note = ""
    if spec.kind == "pairs":
        note = "not known: it needs the error of the null condition, see --unconditional"
        if spec.unconditional:
            note = "the error of the null condition less that of the caption"
        elif spec.model_kind == "contrastive":
            note = "the model's logits"
    return {
        "accuracy": share_interval(hits),
        "calibration_error": expected_calibration_error(scores, hits),
        "composition": compose(all_rows, spec.kind == "pairs", note),
    }


def write_summary(folder: Path) -> Summary:
    """Return `summarize(folder)`, after storing it in the folder as JSON."""
    summary = summarize(folder)
    try:
        write_durably(folder / SUMMARY, json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n")
    except OSError as e:
        raise InputError(f"{folder / SUMMARY} cannot be written: {e}") from e
    return summary


def compare(first: Path, second: Path) -> Comparison:
    """Compare two runs image by image.

    Raises:
        InputError: a folder holds no run; the runs are on different images or classes, or have no image in common.
    """
    specs = [read_spec(folder) for folder in (first, second)]
    if specs[0].data != specs[1].data:
        raise InputError(f"{first} and {second} are of different data and cannot be compared image by image")
    rows = [with_status(read_rows(folder, _COMPARED), "done") for folder in (first, second)]
    return compare_rows(str(first), str(second), rows, paired=specs[0].kind == "pairs")


def compare_rows(first: str, second: str, rows: Sequence[pa.Table], paired: bool = False) -> Comparison:
    """Compare rows of two runs image by image.

    Args:
        first: name of the first run.
        second: name of the second run.
        rows: rows of both runs, done, with at least id, truth, prediction and status.
        paired: whether images come in pairs; then pairs are compared.

    Raises:
        InputError: the runs have no image in common.
    """
    both = [table_to_rows(table.select(_COMPARED)) for table in rows]
    examples: list[dict[str, tuple[ResultRow, ...]]] = [
        {**pairs_of(own)} if paired else {row.id: (row,) for row in own} for own in both
    ]
    common = sorted(examples[0].keys() & examples[1].keys())
    if not common:
        raise InputError(f"{first} and {second} have no {'pair' if paired else 'image'} in common")
    predictions = [[[row.prediction for row in own[i]] for i in common] for own in examples]
    differ = share_interval(torch.tensor([one != two for one, two in zip(*predictions, strict=True)]))
    if any(row.truth is None for row in examples[0][common[0]]):
        return Comparison(first, second, len(common), None, None, None, None, None, differ)
    a, b = (torch.tensor([all(row.is_correct for row in own[i]) for i in common]) for own in examples)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    p_value = binomtest(only_b, only_a + only_b).pvalue if only_a + only_b else 1.0
    return Comparison(
        first, second, len(common) * (2 if paired else 1), difference_interval(b, a),
        _bootstrap(b.double() - a.double()), only_a, only_b, float(p_value), differ,
        len(common) if paired else None,
    )  # fmt: skip


def _indices(names: Any, spec: RunSpec) -> NDArray[np.int64]:
    """Return the class index of each name, (M,); -1 for null, the prediction of a tie."""
    index: dict[str | None, int] = {name: i for i, name in enumerate(spec.class_names)} | {None: -1}
    return np.array([index[name] for name in names.to_pylist()])


def _matrix(column: Any, width: int) -> NDArray[np.float64]:
    return np.array(column.combine_chunks().flatten(), dtype=np.float64).reshape(-1, width)


def _per_class(truth: NDArray[np.int64], correct: NDArray[np.bool_], num_classes: int) -> NDArray[np.float64]:
    """Return the share of correct predictions of each class, (K,); NaN for a class without images."""
    count = np.bincount(truth, minlength=num_classes)
    hits = np.bincount(truth, weights=correct, minlength=num_classes)
    shares: NDArray[np.float64] = np.divide(hits, count, out=np.full(num_classes, np.nan), where=count > 0)
    return shares


def _bootstrap_per_class(truth: NDArray[np.int64], correct: NDArray[np.bool_], num_classes: int) -> tuple[float, float]:
    """Return the ends of the 95% interval of the mean over classes, resampling images within their class.

    A resample of n images with a share p of correct ones has Binomial(n, p) correct ones, so no image is drawn.
    """
    count = np.bincount(truth, minlength=num_classes)
    there = count > 0
    share = _per_class(truth, correct, num_classes)[there]
    rng = np.random.default_rng(0)
    means = (rng.binomial(count[there], share, (RESAMPLES, int(there.sum()))) / count[there]).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _bootstrap(values: Tensor) -> tuple[float, float]:
    """Return the ends of the 95% interval of the mean of values (M,) in {-1, 0, 1}, resampling images.

    The counts of the three values in a resample are multinomial.
    """
    counts = np.array([float((values == value).sum()) for value in (-1, 0, 1)])
    drawn = np.random.default_rng(0).multinomial(len(values), counts / counts.sum(), RESAMPLES)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / len(values), [0.025, 0.975])
    return float(low), float(high)
