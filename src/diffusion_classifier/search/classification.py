"""The result for one image: label, probabilities, and the confidence of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor

from .jobs import NO_COST, Cost, ScoredImage
from .posterior import (
    Reduction,
    log_posterior,
    log_prior_of,
    mean_errors,
    paired_differences,
    probabilities,
    scale_of,
)
from .strategies import TIE


@dataclass(frozen=True)
class Classification:
    """The result for one image; K classes, N draws.

    Args:
        name: name of the image.
        class_names: K candidates.
        label: the predicted class; None if there is a `failure`.
        posterior: (K,), float64; see `search.posterior`. It is 0 for eliminated classes.
        bound: (K,), float64: for an eliminated class, an upper limit (one-sided 95%, Student's t) of the posterior that
            it would have among the others, from the draws that it has; 1 for fewer than two draws. For other classes,
            the posterior itself.
        margin: (K,): mean of error(c) - error(label) over the draws that both have.
        standard_error: (K,): standard error of the margin.
        confidence: search confidence, the probability that more draws would not change the label; not the probability
            that the label is correct. If the strategy states the doubt left about each rival, 1 minus the largest
            doubt: a lower bound of the probability that all draws would have led to this label, prior aside. Otherwise
            1 minus the sum over rivals of the tail of Student's t beyond their margin, prior included, over its
            standard error; at least 0.
        undecided: the labels that the strategy could not rule out, if it tests that and there are several.
        ties: labels that float32 does not tell apart from the winner; among exact ties, the first candidate is `label`.
        shortlist: the labels that remained after a shortlist; None without one. All fields above are relative to these
            labels: for the others, the posterior is 0 and the bound 1, because nothing is known about them.
        errors: error table (K, N), float32, NaN where never evaluated.
        t: (N,): timestep of each draw.
        weights: (N,), float64: weight of each draw; all equal if None.
        num_evaluations: network predictions, the shortlist's included.
        cost: their equivalent in full predictions; fewer where rows share work.
        seconds: from the first prediction for this image to the last; images in flight together share them.
        screening: the part of these three that the shortlist took.
        extra_losses: error tables of other losses, if any were requested.
        notes: decisions made while the image was decoded.
        failure: the reason if there is no result; otherwise None.
    """

    name: str
    class_names: tuple[str, ...]
    label: str | None
    posterior: Tensor
    bound: Tensor
    margin: Tensor
    standard_error: Tensor
    confidence: float
    undecided: tuple[str, ...]
    ties: tuple[str, ...]
    shortlist: tuple[str, ...] | None
    errors: Tensor
    t: Tensor
    weights: Tensor | None
    num_evaluations: int
    cost: float
    seconds: float
    screening: Cost = NO_COST
    extra_losses: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def score(self) -> float:
        """Posterior of the label; 0 without one."""
        return float(self.posterior.max()) if self.label is not None else 0.0

    @property
    def scores(self) -> dict[str, float]:
        """Map of label to posterior, best first."""
        order = sorted(zip(self.class_names, self.posterior.tolist(), strict=True), key=lambda pair: -pair[1])
        return dict(order)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as the command line and the web page show them; {"image", "error"} for a failure."""
        if self.failure is not None:
            return {"image": self.name, "error": self.failure}
        row: dict[str, Any] = {
            "image": self.name,
            "label": self.label,
            "score": self.score,
            "confidence": self.confidence,
            "scores": self.scores,
            "num_evaluations": self.num_evaluations,
            "cost": self.cost,
            "seconds": round(self.seconds, 3),
        }
        if self.shortlist is not None:
            row["shortlist"] = {
                "labels": list(self.shortlist),
                "num_evaluations": self.screening.num_evaluations,
                "cost": self.screening.full_evaluations,
                "seconds": self.screening.seconds,
            }
        if self.undecided:
            row["undecided"] = list(self.undecided)
        if self.ties:
            row["ties"] = list(self.ties)
        if self.notes:
            row["notes"] = list(self.notes)
        return row


def decide(
    scored: ScoredImage,
    class_names: Sequence[str],
    *,
    num_dimensions: int,
    reduction: Reduction = "sum",
    temperature: float = 1.0,
    prior: Sequence[float] | None = None,
    notes: Sequence[str] = (),
) -> Classification:
    """Return the result of a scored image; settings as in `log_posterior`."""
    names = tuple(class_names)
    nothing = torch.full((len(names),), torch.nan, dtype=torch.float64)
    facts: dict[str, Any] = {
        "name": scored.name,
        "class_names": names,
        "shortlist": None if scored.candidates is None else tuple(names[i] for i in scored.candidates.tolist()),
        "errors": scored.errors,
        "t": scored.t,
        "weights": scored.weights,
        "num_evaluations": scored.cost.num_evaluations,
        "cost": scored.cost.full_evaluations,
        "seconds": scored.cost.seconds,
        "screening": scored.screening,
        "extra_losses": scored.extra_losses,
        "notes": tuple(notes),
        "failure": scored.failure,
    }
    if scored.failure is not None:
        return Classification(
            **facts, label=None, posterior=nothing, bound=nothing, margin=nothing, standard_error=nothing,
            confidence=0.0, undecided=(), ties=(),
        )  # fmt: skip
    means = mean_errors(scored.errors, scored.weights).where(scored.active, torch.inf)
    logs = log_posterior(
        means, num_dimensions=num_dimensions, reduction=reduction, temperature=temperature, prior=prior
    )
    posterior = probabilities(logs)
    winner = int(logs.argmax())
    margin, standard_error = paired_differences(scored.errors, winner, scored.weights)
    scale = scale_of(num_dimensions, reduction, temperature)
    log_prior = log_prior_of(prior, len(names))
    # In units of error, so that the prior counts as a difference of errors would.
    lead = margin + (log_prior[winner] - log_prior) / scale
    counts = ~scored.errors.isnan()
    met = counts.any(1)
    counts = counts if scored.weights is None else counts & (scored.weights > 0)
    degrees = counts.sum(1).numpy() - 1
    least = (lead - torch.as_tensor(stdtrit(degrees, 0.95)) * standard_error).nan_to_num(-torch.inf)
    # With that lead, a class would have p / (1 + p), where p is exp(-scale · least) times the winner's posterior.
    bound = (logs[winner] - scale * least).sigmoid()
    statistic = (lead / standard_error.clamp(min=1e-30)).numpy()
    tail = torch.as_tensor(stdtr(degrees, -statistic)).nan_to_num(0.5)
    rivals = met & (torch.arange(len(names)) != winner)
    undecided = _chosen(names, scored.undecided) if scored.undecided is not None else ()
    doubt = tail[rivals].sum() if scored.doubt is None else scored.doubt[rivals].max()
    tied = rivals & (logs[winner] - logs <= scale * TIE * means[winner])
    return Classification(
        **facts,
        label=names[winner],
        posterior=posterior,
        bound=torch.where(scored.active, posterior, bound),
        margin=margin,
        standard_error=standard_error,
        confidence=float((1 - doubt).clamp(min=0)),
        undecided=undecided if len(undecided) > 1 else (),
        ties=_chosen(names, tied),
    )


def _chosen(names: Sequence[str], mask: Tensor) -> tuple[str, ...]:
    return tuple(name for name, chosen in zip(names, mask.tolist(), strict=True) if chosen)
