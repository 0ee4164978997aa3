"""From an error table to a posterior: equations 5 to 8 of the paper, paired standard errors, ties.

`posterior` is p(c|x) of equation 6 over the classes that were still compared at the end:

    p(c|x) ∝ p(c) · exp(-S_c / τ),     S_c = Σ_t w(t) · error(c, t) / Σ_t w(t)  ×  (dimensions, or 1)

The paper sums squared errors over dimensions ("sum"), which at τ = 1 is far more confident than accurate. The mean over
dimensions ("mean") is close to uniform. The reduction and the temperature τ are settings, and a model may have a fitted
τ. The search confidence is another number: the probability that more draws would give the same label, whether or not
that label is correct.

Shape legend: K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .strategies import TIE

Reduction = Literal["sum", "mean"]


def mean_errors(errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return Σ_n w_n·e_kn / Σ_n w_n over the draws that each class has, (K,) or (…, K), float64.

    Args:
        errors: (…, K, N), NaN where never evaluated.
        weights: (…, N), at least 0; uniform if None.
    """
    errors = errors.double()
    known = ~errors.isnan()
    w = known.double() if weights is None else known * weights.double()[..., None, :]
    return (errors.nan_to_num() * w).sum(-1) / w.sum(-1)


def log_posterior(
    mean_error: Tensor,
    *,
    num_dimensions: int,
    reduction: Reduction = "sum",
    temperature: float = 1.0,
    prior: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Return log p(c|x), (K,), float64: equations 5 and 6.

    Args:
        mean_error: (K,), means over draws and dimensions; infinite for eliminated classes.
        num_dimensions: number of dimensions of a latent.
        reduction: whether errors count as sums or as means over dimensions.
        temperature: τ > 0.
        prior: p(c), (K,), positive up to a factor; uniform if None.

    Raises:
        InputError: an unknown reduction; a temperature or a prior that is not positive, or of another length.
    """
    scale = scale_of(num_dimensions, reduction, temperature)
    logits = -scale * (mean_error.double() - mean_error.min())
    return (logits + log_prior_of(prior, len(mean_error))).log_softmax(0)


_UNDERFLOW = -690.0


def probabilities(logs: Tensor) -> Tensor:
    """Return probabilities from their logs (…, K), float64.

    Values that would underflow become about 1e-300 in their order; -inf stays 0.
    """
    low = (logs < _UNDERFLOW) & logs.isfinite()
    if not bool(low.any()):
        return logs.exp()
    rank = logs.argsort(dim=-1, descending=True, stable=True).argsort(-1) / logs.shape[-1]
    return logs.where(~low, _UNDERFLOW - rank).exp()


def scale_of(num_dimensions: int, reduction: Reduction, temperature: float) -> float:
    """Return the factor from a difference of mean errors to a difference of logits.

    Raises:
        InputError: an unknown reduction; a temperature that is not positive.
    """
    if reduction not in get_args(Reduction):
        raise InputError(f"the reduction must be {' or '.join(get_args(Reduction))}; got {reduction!r}")
    if not 0 < temperature < inf:
        raise InputError(f"the temperature must be above 0; got {temperature}")
    return (num_dimensions if reduction == "sum" else 1) / temperature


def log_prior_of(prior: Sequence[float] | Tensor | None, num_classes: int) -> Tensor:
    """Return log p(c), (K,), float64, up to a constant; see `log_posterior`."""
    if prior is None:
        return torch.zeros(num_classes, dtype=torch.float64)
    p = torch.as_tensor(prior, dtype=torch.float64)
    if p.shape != (num_classes,) or not bool((p > 0).all()) or not bool(p.isfinite().all()):
        raise InputError(f"the prior must hold {num_classes} positive numbers, one per class; got {p.tolist()}")
    return p.log()


def paired_differences(errors: Tensor, reference: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and standard error of error(c) - error(reference) over the draws that both have (section 3.3).

    Args:
        errors: (K, N), NaN where never evaluated.
        reference: a class that has every draw that any other has.
        weights: (N,), at least 0; uniform if None.

    Returns:
        Means (K,) and standard errors (K,), float64; a standard error from fewer than two draws is NaN.
    """
    difference = errors.double() - errors[reference].double()
    known = ~difference.isnan()
    w = known.double() if weights is None else known * weights.double()
    n, total = (w > 0).sum(1), w.sum(1)
    mean = (difference.nan_to_num() * w).sum(1) / total
    squares = ((difference - mean[:, None]).nan_to_num() * w).square().sum(1)
    standard_error = torch.where(n > 1, (squares * n / (n - 1).clamp(min=1)).sqrt() / total, torch.nan)
    return mean, standard_error


def is_correct(means: Tensor, truth: Tensor) -> Tensor:
    """Return whether the true class has the least mean error, and no other class ties with it, (M, …), bool.

    Args:
        means: mean errors (M, K, …), infinite for eliminated classes.
        truth: indices of the true classes, (M, …).
    """
    least = means.amin(1, keepdim=True)
    alone = (means - least <= TIE * least.abs()).sum(1) == 1
    return (means.argmin(1) == truth) & alone
