"""Does a model tell images of its own kind from others? Scores of images, and how well they part two runs.

Shape legend: M images of the known kind, N others, K classes.
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
from ..runs.spec import read_spec, refuse_captions
from ..runs.store import read_rows, with_status
from ..search.posterior import mean_errors

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Outliers:
    """How well a score parts two runs of a model.

    Args:
        known: folder of the run over images of the kind that the model knows.
        unknown: folder of the run over others.
        score: "probability" of the best class; "error", the negative mean error of the best class over the run's
            draws: with l2 over the whole schedule the paper's ELBO, which leaves out its weights (equation 4); or
            "energy", log Σ exp of logits (Liu et al. 2020).
        auroc: chance that an image of the first kind has the higher score, with its 95 % interval (DeLong et al. 1988).
        false_positives: share of the others that have a score which 95 % of the known ones exceed.
    """

    known: str
    unknown: str
    score: str
    auroc: Interval
    false_positives: float


def auroc(known: Values, unknown: Values) -> Interval:
    """Chance that a known image (M,) has the higher score than another (N,), with its 95 % interval.

    Ties count half. DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated receiver
    operating characteristic curves". Of two that do not overlap it makes an interval of no width; theirs is of Newcombe
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
    """The area from which complete separation of m and n values is as far as its 95 % interval reaches."""
    others = (m + n) / 2 - 1

    def excess(area: float) -> float:
        pairs = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
        return float(1 - area - 1.959964 * (area * (1 - area) * pairs / (m * n)) ** 0.5)

    return float(brentq(excess, 1e-9, 1 - 1e-9))


def _placed(values: Values, among: Values) -> Values:
    """Share of the others that each value exceeds, ties counting half."""
    ordered = np.sort(among)
    low, high = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    found: Values = (low + high) / (2 * len(among))
    return found


def scores(folder: Path) -> dict[str, Values]:
    """What a run says of how usual its images are: score → values of images, higher being more usual.

    Raises:
        InputError: no run, one of captions, or one without answers.
    """
    spec = read_spec(folder)
    refuse_captions(folder, spec, "this")
    rows = with_status(read_rows(folder, ["posterior", "fits", "status"]), "done")
    if not len(rows):
        raise InputError(f"no image of {folder} is done yet")
    found = {"probability": np.array([max(p) for p in rows["posterior"].to_pylist()])}
    if not rows["fits"].null_count:
        found["energy"] = logsumexp(np.array(rows["fits"].to_pylist()), axis=1)
    if spec.store_errors and spec.sees_all:  # else the times of a mean differ, which would decide it
        means = (mean_errors(errors).min() for errors in read_tables(folder).errors)
        found["error"] = -np.array([float(mean) for mean in means])
    return found


def outliers(known: Path, others: Sequence[Path]) -> list[Outliers]:
    """How well each score parts the first run from others of the same model.

    Raises:
        InputError: another model, or one that was read otherwise; as `scores`.
    """
    spec, own = read_spec(known), scores(known)
    result = []
    for other in others:
        spec.refuse_unlike(read_spec(other), known, other)
        theirs = scores(other)
        for name in own.keys() & theirs.keys():
            usual = own[name]
            passed = float((theirs[name] >= np.quantile(usual, 0.05)).mean())
            result.append(Outliers(str(known), str(other), name, auroc(usual, theirs[name]), passed))
    return sorted(result, key=lambda o: ([str(p) for p in others].index(o.unknown), o.score))
