"""Metrics over many images, as plain functions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor


class Interval(NamedTuple):
    """An estimate with the ends of its 95% interval; printed as percentages, "87.2% (85.0–89.1)"."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({100 * self.low:.1f}–{100 * self.high:.1f})"

    def points(self) -> str:
        """Return the text for a difference of shares, in percentage points: "+0.8 points (-1.4 to +2.9)"."""
        return "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * value for value in self))


def share_interval(hits: Tensor) -> Interval:
    """Return the share of true values of (M,), bool, with Wilson's 95% interval (Wilson 1927)."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return Interval(float(hits.double().mean()), float(interval.low), float(interval.high))


def mean_interval(values: Tensor) -> Interval:
    """Return the mean of independent values (M,) with its 95% interval by the normal distribution."""
    values = values.double()
    mean = float(values.mean())
    margin = 1.959964 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return Interval(mean, mean - margin, mean + margin)


def difference_interval(a: Tensor, b: Tensor) -> Interval:
    """Return the difference of the shares of true values in a and b, (M,), bool, paired, with its 95% interval.

    This is Wald's interval with half an image added to each cell of the table (Agresti and Min 2005, "Simple improved
    confidence intervals for comparing matched proportions").
    """
    n = len(a) + 2
    only_a, only_b = float((a & ~b).sum()) + 0.5, float((b & ~a).sum()) + 0.5
    difference = (only_a - only_b) / n
    margin = 1.959964 * math.sqrt(only_a + only_b - n * difference**2) / n
    return Interval(float(a.double().mean() - b.double().mean()), difference - margin, difference + margin)


def expected_calibration_error(scores: Tensor, right: Tensor, num_bins: int = 15) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al. 2017).

    It is the mean distance between score and accuracy, weighted by the number of images in each bin.

    Args:
        scores: Scores of the predictions, (M,), in [0, 1].
        right: Whether each prediction is correct, (M,), bool.
        num_bins: Number of bins of [0, 1].
    """
    bins = (scores.double() * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add(0, bins, scores.double() - right.double())
    return float(gaps.abs().sum() / len(scores))
