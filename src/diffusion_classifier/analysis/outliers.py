"""Detection of out-of-distribution images: scores of images, and how well they separate two runs.

Shape legend: M in-distribution images, N out-of-distribution images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp

from ..errors import InputError
from ..metrics import Interval
from ..runs.error_tables import read_tables
from ..runs.spec import check_class_run, read_spec
from ..runs.store import read_rows, with_status
from ..search.posterior import mean_errors

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Outliers:
    """How well a score separates out-of-distribution images from in-distribution ones.

    Args:
        known: folder of the run over in-distribution images.
        unknown: folder of the run over out-of-distribution images.
        score: "probability" of the best class; "error", the negative mean error of the best class over the run's draws
            (with l2 over the whole schedule the paper's unweighted ELBO, equation 4); or "energy", log Σ exp of the
            logits (Liu et al. 2020).
        auroc: probability that an in-distribution image has the higher score, with its 95% interval (DeLong et al.
            1988).
        false_positives: share of out-of-distribution images above the threshold that 95% of the in-distribution images
            exceed (FPR95).
    """

    known: str
    unknown: str
    score: str
    auroc: Interval
    false_positives: float


def auroc(known: Values, unknown: Values) -> Interval:
    """Return the area under the ROC curve for scores (M,) and (N,), with its 95% interval.

    It is the probability that an in-distribution image has the higher score; ties count half. The interval is that of
    DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver operating
    characteristic curves". If the scores do not overlap, its width would be 0: then the interval is that of Newcombe
    2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2", method 5.
    """
    below, above = _placed(known, unknown), 1 - _placed(unknown, known)
    area = float(below.mean())
    spread = sum(float(v.var(ddof=1)) / len(v) if len(v) > 1 else 0.0 for v in (below, above))
    if spread == 0:
        end = _apart(len(known), len(unknown))
        return Interval(area, end if area == 1 else 0.0, 1 - end if area == 0 else 1.0)
    margin = 1.959964 * spread**0.5
    return Interval(area, max(0.0, area - margin), min(1.0, area + margin))


def _apart(m: int, n: int) -> float:
    """Return the smallest area whose 95% interval still contains complete separation of m and n values."""
    others = (m + n) / 2 - 1

    def excess(area: float) -> float:
        pairs = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
        return float(1 - area - 1.959964 * (area * (1 - area) * pairs / (m * n)) ** 0.5)

    return float(brentq(excess, 1e-9, 1 - 1e-9))


def _placed(values: Values, among: Values) -> Values:
    """Return the share of `among` that each value exceeds; ties count half."""
    ordered = np.sort(among)
    low, high = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    found: Values = (low + high) / (2 * len(among))
    return found


def scores(folder: Path) -> dict[str, Values]:
    """Return name of the score → value of each image of a run, (M,); higher means more in-distribution.

    Raises:
        InputError: the folder holds no run, the run is over captions, or no image is done.
    """
    spec = read_spec(folder)
    check_class_run(folder, spec, "this")
    rows = with_status(read_rows(folder, ["posterior", "match_scores", "status"]), "done")
    if not len(rows):
        raise InputError(f"no image of {folder} is done yet")
    found = {"probability": np.array([max(p) for p in rows["posterior"].to_pylist()])}
    if not rows["match_scores"].null_count:
        found["energy"] = logsumexp(np.array(rows["match_scores"].to_pylist()), axis=1)
    if spec.store_errors and spec.sees_all:  # otherwise means are over different timesteps and cannot be compared
        means = (mean_errors(errors).min() for errors in read_tables(folder).errors)
        found["error"] = -np.array([float(mean) for mean in means])
    return found


def measure_outliers(known: Path, others: Sequence[Path]) -> list[Outliers]:
    """Return how well each score separates the first run from others of the same model.

    Raises:
        InputError: a run used another model or other settings; as `scores`.
    """
    spec, own = read_spec(known), scores(known)
    result = []
    for other in others:
        spec.check_comparable(read_spec(other), known, other)
        theirs = scores(other)
        for name in own.keys() & theirs.keys():
            passed = float((theirs[name] >= np.quantile(own[name], 0.05)).mean())
            result.append(Outliers(str(known), str(other), name, auroc(own[name], theirs[name]), passed))
    return sorted(result, key=lambda o: ([str(p) for p in others].index(o.unknown), o.score))
