"""From an error table to an answer: paper equations 5 to 8, paired standard errors, ties, confidence.

What a score means. `posterior` is p(c|x) of equation 6 over the classes that were still compared at the end:

    p(c|x) ∝ p(c) · exp(-S_c / τ),     S_c = Σ_t w(t) · error(c, t) / Σ_t w(t)  ×  (dimensions, or 1)

The paper's equation sums squared errors over dimensions ("sum"), which at τ = 1 is confident far beyond its accuracy;
the mean over dimensions ("mean") is close to uniform. Both and the temperature τ are explicit; a model carries a
fitted τ where one was fitted. `confidence` is another number: how sure it is that more draws would give the same
answer, whether or not that answer is right.

Shape legend: K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, get_args

import torch
from scipy.special import stdtr, stdtrit
from torch import Tensor

from .denoisers.base import Denoiser
from .exceptions import InputError
from .jobs import NOTHING, Scored, Spent
from .schedules import EDM, DiscreteVP, Schedule
from .strategies import TIE
from .weights import SAMPLES, Weights, read_weights

Reduction = Literal["sum", "mean"]


def elbo_weights(schedule: Schedule, t: Tensor) -> Tensor:
    """w(t), (N,), float64, under which the average over uniform t of summed ℓ2 errors is the variational bound itself.

    -log p(x|c) ≤ ½ ∫ E‖ε - ε̂‖² dλ + const with λ = log α²/σ² (Kingma et al. 2021, "Variational diffusion models",
    section 5: continuous time), with equality for the optimal denoiser (Kong et al. 2023, "Information-theoretic
    diffusion"); hence w(t) = ½ |dλ/du| with u = t/T. Uniform weights are the paper's choice (section 3.1); these are
    the ones for which the posterior of an optimal denoiser is the true one. `mean_errors` divides by Σw: to get the
    bound from it, take "sum" and the temperature 1 / (average of w over uniform t).
    """
    if isinstance(schedule, DiscreteVP):
        steps = torch.arange(schedule.num_timesteps)
        alpha, sigma = (a.double() for a in schedule(steps))
        # ᾱ may end at 0, where λ is -∞: that step takes the slope of the one before it.
        log_snr = 2 * torch.log(alpha / sigma)
        log_snr[-1] = log_snr[-1] if alpha[-1] > 0 else 2 * log_snr[-2] - log_snr[-3]
        slope = torch.gradient(log_snr)[0] * schedule.num_timesteps
        return 0.5 * slope.abs()[t.long()]
    if isinstance(schedule, EDM):  # λ = -2 log s/σ_d
        ends = (t.double() + torch.tensor([[-1e-3], [1e-3]])).clamp(0, schedule.num_timesteps)
        return schedule.levels(ends).log().diff(dim=0)[0] / ends.diff(dim=0)[0] * schedule.num_timesteps
    alpha, sigma = (a.double() for a in schedule(t))
    # λ = 2 log((1 - σ)/σ); at the very ends, where the errors do not depend on the class, the slope is capped.
    return 1 / (alpha * sigma).clamp(min=1e-6)


def training_weights(denoiser: Denoiser, loss: str = "l2") -> Weights:
    """Weights over time under which errors of ε count as those that the network was trained to make small.

    A network that returns y is trained on ‖y - ŷ‖² at times of some density; ‖ε - ε̂‖² is α² times that for velocity,
    flow and EDM, α²/σ² times for x. The density is even but for Stable Diffusion 3, whose is known. At the noisy end,
    where α is 0, weights would have no bound: there α counts as 0.01 at least.

    Args:
        denoiser: the model.
        loss: of the errors; those of l1 are not squared, and so are their factors.
    """
    u = torch.linspace(0, 1, SAMPLES, dtype=torch.float64)
    t = denoiser.schedule.timesteps(u.clamp(max=1 - 2**-24))
    alpha, sigma = (a.double() for a in denoiser.schedule(t))
    squared = alpha.clamp(min=0.01) ** 2
    kind = denoiser.prediction_type
    ratio = torch.ones_like(u) if kind == "epsilon" else (sigma**2 if kind == "sample" else 1.0) / squared
    ratio = ratio.sqrt() if loss == "l1" else ratio
    return read_weights((ratio * denoiser.time_density(u)).tolist())


def usual_weights(denoiser: Denoiser, loss: str = "l2") -> Weights | None:
    """Weights over time where nobody fitted any: uniform, the paper's choice, with two exceptions.

    Networks that return x: to make ε of it, errors are divided by σ, so that in a uniform average those at times with
    little noise drown the others. And networks that were not trained at even times, which know less of some. For both,
    those of their training (docs/strategies.md has what they gain).
    """
    exception = denoiser.prediction_type == "sample" or denoiser.times != "even"
    return training_weights(denoiser, loss) if exception else None


def mean_errors(errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ_n w_n·e_kn / Σ_n w_n over the draws that each class has, (K,), float64; or of many tables at once.

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
    """log p(c|x), (K,), float64: equations 5 and 6.

    Args:
        mean_error: (K,), means over draws and dimensions; infinite for classes that are out.
        num_dimensions: of a latent.
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
    """Of log-probabilities (…, K), float64. What would underflow is 1e-300 or so, in order; what is out stays 0."""
    low = (logs < _UNDERFLOW) & logs.isfinite()
    if not bool(low.any()):
        return logs.exp()
    rank = logs.argsort(dim=-1, descending=True, stable=True).argsort(-1) / logs.shape[-1]
    return logs.where(~low, _UNDERFLOW - rank).exp()


def scale_of(num_dimensions: int, reduction: Reduction, temperature: float) -> float:
    """What a difference of mean errors is worth in logits."""
    if reduction not in get_args(Reduction):
        raise InputError(f"the reduction must be {' or '.join(get_args(Reduction))}; got {reduction!r}")
    if not 0 < temperature < inf:
        raise InputError(f"the temperature must be above 0; got {temperature}")
    return (num_dimensions if reduction == "sum" else 1) / temperature


def log_prior_of(prior: Sequence[float] | Tensor | None, num_classes: int) -> Tensor:
    """log p(c), (K,), float64, up to a constant; see `log_posterior`."""
    if prior is None:
        return torch.zeros(num_classes, dtype=torch.float64)
    p = torch.as_tensor(prior, dtype=torch.float64)
    if p.shape != (num_classes,) or not bool((p > 0).all()) or not bool(p.isfinite().all()):
        raise InputError(f"the prior must hold {num_classes} positive numbers, one a class; got {p.tolist()}")
    return p.log()


def paired_differences(errors: Tensor, reference: int, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard error of error(c) - error(reference) over the draws that both have (paper, section 3.3).

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


@dataclass(frozen=True)
class Classification:
    """The answer for one image; K classes, N draws.

    Args:
        name: of the image.
        class_names: K candidates.
        label: the best of them; None where `failure` says why there is none.
        posterior: (K,), float64: see the module; 0 for classes eliminated on the way.
        bound: (K,), float64: for an eliminated class an upper limit of the posterior that it would have among the
            others, at one-sided 95 % (Student's t), from the draws on which it lost; 1 if these are fewer than two. For
            the others the posterior itself.
        margin: (K,): mean of error(c) - error(label) over the draws that both have.
        standard_error: (K,): of the margin.
        confidence: probability that more draws would not change the label. Where the strategy says how much doubt it
            left a rival, 1 less the largest such doubt: a bound of the probability that all draws together would have
            chosen the label, prior aside. Else 1 less the sum over all rivals of the tail of Student's t beyond their
            margin, prior included, over its standard error; at least 0. It says nothing about whether the label is
            right.
        undecided: where the strategy asks, the labels that it could not rule out, if these are more than one.
        ties: labels that float32 does not tell apart from the winner; of exact ties the first candidate is the `label`.
        shortlist: the labels that the image had to choose from, where others were ruled out before; None else.
            Everything above is among these: the posterior of the others is 0 and their bound 1, since nothing is known
            of them here.
        errors: error table (K, N), float32, NaN where never evaluated.
        t: (N,): timestep of each draw.
        weights: (N,), float64: what each draw counts; all the same if None.
        num_evaluations: network predictions spent, on the shortlist too.
        cost: the same in full predictions, which shared work makes fewer.
        seconds: from the first prediction for this image to the last; images in flight together share them.
        screening: the part of these three that the shortlist took.
        also: error tables of other losses, where those were asked for.
        notes: what was decided about the image on the way.
        failure: why there is no answer; None if there is one.
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
    screening: Spent = NOTHING
    also: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def score(self) -> float:
        """The posterior of the label; 0 without one."""
        return float(self.posterior.max()) if self.label is not None else 0.0

    @property
    def scores(self) -> dict[str, float]:
        """Label → posterior, best first."""
        order = sorted(zip(self.class_names, self.posterior.tolist(), strict=True), key=lambda pair: -pair[1])
        return dict(order)


def decide(
    scored: Scored,
    class_names: Sequence[str],
    *,
    num_dimensions: int,
    reduction: Reduction = "sum",
    temperature: float = 1.0,
    prior: Sequence[float] | None = None,
    notes: Sequence[str] = (),
) -> Classification:
    """The answer that follows from what was scored; arguments as in `log_posterior`."""
    names = tuple(class_names)
    nothing = torch.full((len(names),), torch.nan, dtype=torch.float64)
    facts: dict[str, Any] = {
        "name": scored.name,
        "class_names": names,
        "shortlist": None if scored.candidates is None else tuple(names[i] for i in scored.candidates.tolist()),
        "errors": scored.errors,
        "t": scored.t,
        "weights": scored.weights,
        "num_evaluations": scored.spent.num_evaluations,
        "cost": scored.spent.cost,
        "seconds": scored.spent.seconds,
        "screening": scored.screening,
        "also": scored.also,
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
    # The prior decides as so much error would.
    lead = margin + (log_prior[winner] - log_prior) / scale
    counts = ~scored.errors.isnan()
    met = counts.any(1)
    counts = counts if scored.weights is None else counts & (scored.weights > 0)
    degrees = counts.sum(1).numpy() - 1
    least = (lead - torch.as_tensor(stdtrit(degrees, 0.95)) * standard_error).nan_to_num(-torch.inf)
    # Let in again at that lead it would have p / (1 + p), with p = exp(-scale · least) times what the winner has.
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
