"""New answers from the error tables of a run, without the network.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ..diffusion.timestep_weights import Weights, WeightsSource, read_weights, weights_at
from ..errors import InputError
from ..search.posterior import log_prior_of, mean_errors, probabilities, scale_of
from ..search.strategies import TIE
from .spec import RunSpec, spec_with_errors
from .store import open_run, read_rows


def rescore(
    folder: Path,
    out: Path,
    *,
    loss: str | None = None,
    weights: WeightsSource | None = None,
    temperature: float | None = None,
    prior: Sequence[float] | None = None,
) -> None:
    """Answer again, and keep the answers as another run of the same images.

    Args:
        folder: of a run with errors.
        out: folder of the new one.
        loss: see `other_settings`, and so the others.
        weights: see there.
        temperature: see there.
        prior: see there.

    Raises:
        InputError: a run without errors, settings that cannot be used, or the same folder for both.
    """
    if out.resolve() == folder.resolve():
        raise InputError(f"{folder} keeps its own answers: choose another --out")
    spec = spec_with_errors(folder)
    now = other_settings(folder, spec, loss=loss, weights=weights, temperature=temperature, prior=prior)
    rows = read_rows(folder)
    with open_run(out, replace(now, command=f"rescore {folder}")) as run:
        todo = rows.filter(pc.invert(pc.is_in(rows["id"], pa.array(sorted(run.done), pa.string()))))
        for batch in todo.to_batches(max_chunksize=1000):
            run.extend(answer_again(pa.Table.from_batches([batch]), spec, now))


def other_settings(
    folder: Path,
    spec: RunSpec,
    *,
    loss: str | None = None,
    weights: WeightsSource | None = None,
    temperature: float | None = None,
    prior: Sequence[float] | None = None,
) -> RunSpec:
    """What a run would say of itself, had it been read with other settings.

    Args:
        folder: of the run, for messages.
        spec: of the run, which has errors.
        loss: one of those whose errors the run holds; its own if None.
        weights: over time, as `read_weights` takes them, or "uniform"; the run's own if None.
        temperature: of the posterior; the run's own if None, which was fitted for its own weights.
        prior: one positive number a class; the run's own if None.

    Raises:
        InputError: settings that cannot be used.
    """
    loss = spec.loss if loss is None else loss
    if loss not in (spec.loss, *spec.also):
        raise InputError(
            f"{folder} holds errors of the losses {', '.join((spec.loss, *spec.also))}, not of {loss!r}, which "
            f"`evaluate --store-errors --also {loss}` keeps"
        )
    found: Weights | None = spec.weights
    if weights is not None:
        found = None if weights == "uniform" else read_weights(weights)
    tau = spec.temperature if temperature is None else temperature
    p = spec.prior if prior is None else tuple(map(float, prior))
    if p is not None and spec.kind != "classes":
        raise InputError(f"a prior is of classes, and the images of {folder} have captions of their own")
    also = tuple(name for name in (spec.loss, *spec.also) if name != loss)
    now = replace(spec, loss=loss, also=also, weights=found, temperature=tau, prior=p)
    _scale_and_prior(now)  # for their complaints
    return now


def _scale_and_prior(spec: RunSpec) -> tuple[float, Tensor]:
    scale = scale_of(spec.num_dimensions, spec.reduction, spec.temperature)  # type: ignore[arg-type]
    return scale, log_prior_of(spec.prior, len(spec.class_names))


def answer_again(rows: pa.Table, spec: RunSpec, now: RunSpec) -> pa.Table:
    """The rows of a run with new answers.

    Classes that the strategy ruled out stay out: of them there are not enough errors. `confidence` is not known then.

    Args:
        rows: of the run, all columns.
        spec: of the run.
        now: what `other_settings` made of it.

    Raises:
        InputError: all draws of an image are at times whose weight is 0.
    """
    rows = rows if now.loss == spec.loss else _with_loss(rows, spec.loss, now.loss)
    return _answered(rows, spec, now.weights, *_scale_and_prior(now))


def _with_loss(rows: pa.Table, own: str, loss: str) -> pa.Table:
    """The same rows with the errors of another loss in the place of their own."""
    chosen, others = [], []
    for errors, also in zip(rows["errors"].to_pylist(), rows["also"].to_pylist(), strict=True):
        tables = None if errors is None else {**dict(also), own: errors}  # none of an image that failed
        chosen.append(tables and tables.pop(loss))
        others.append(tables and list(tables.items()))
    return _replaced(rows, {"errors": chosen, "also": others})


def _replaced(rows: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    return rows


def _answered(rows: pa.Table, spec: RunSpec, weights: Weights | None, scale: float, log_prior: Tensor) -> pa.Table:
    """The same rows with new answers."""
    names, captioned = rows["candidates"].to_pylist(), spec.kind != "classes"
    predictions: list[str | None] = [None] * len(rows)
    posteriors: list[list[float] | None] = [None] * len(rows)
    fits: list[list[float] | None] = [None] * len(rows)
    lengths = (pc.list_value_length(rows[name]).fill_null(0).to_pylist() for name in ("errors", "timesteps"))
    shapes: list[tuple[int, int]] = list(zip(*lengths, strict=True))
    flat = torch.from_numpy(rows["errors"].combine_chunks().flatten().flatten().to_numpy().copy())
    times = torch.from_numpy(rows["timesteps"].combine_chunks().flatten().to_numpy().copy())
    starts = torch.tensor([0, *(k * n for k, n in shapes)]).cumsum(0).tolist()
    first_times = torch.tensor([0, *(n for _, n in shapes)]).cumsum(0).tolist()
    for k, n in sorted(set(shapes) - {(0, 0)}):  # images with tables of the same shape together
        at = [i for i, shape in enumerate(shapes) if shape == (k, n)]
        errors = torch.stack([flat[starts[i] : starts[i] + k * n].view(k, n) for i in at]).double()
        t = torch.stack([times[first_times[i] : first_times[i] + n] for i in at])
        means = mean_errors(errors, None if weights is None else weights_at(weights, t / spec.num_timesteps))
        if bool(means.isnan().all(1).any()):
            raise InputError("all draws of an image are at times whose weight is 0: choose other weights")
        if spec.unconditional:
            for i, gains in zip(at, scale * (means[:, -1:] - means[:, :-1]), strict=True):
                fits[i] = gains.tolist()
            errors, means = errors[:, :-1], means[:, :-1]
        known = (~errors.isnan()).sum(2)
        left = known == known.amax(1, keepdim=True)
        logits = (log_prior - scale * means if len(log_prior) else -scale * means).where(left, -torch.inf)
        for i, p, logit, mean in zip(at, probabilities(logits.log_softmax(1)), logits, means, strict=True):
            best, posteriors[i] = int(p.argmax()), p.tolist()
            own = names[i] if captioned else spec.class_names
            tied = int((logit[best] - logit <= scale * TIE * mean[best]).sum()) > 1
            predictions[i] = None if tied else own[best]
    answers: dict[str, list[Any]] = {"prediction": predictions, "posterior": posteriors, "fits": fits}
    return _replaced(rows, answers | {"confidence": [None] * len(rows)})
