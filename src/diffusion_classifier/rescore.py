"""New answers from the error tables of a run, without the network.

Shape legend: M images, K classes, N draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from .exceptions import InputError
from .posterior import log_prior_of, mean_errors, scale_of
from .runs import open_run, read_rows
from .spec import RunSpec, spec_with_errors
from .weights import Weights, WeightsSource, read_weights, weights_at


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

    Classes that the strategy ruled out stay out: of them there are not enough errors. `confidence` is not known then.

    Args:
        folder: of a run with errors.
        out: folder of the new one.
        loss: one of those whose errors the run holds; its own if None.
        weights: over time, as `read_weights` takes them, or "uniform"; the run's own if None.
        temperature: of the posterior; the run's own if None, which was fitted for its own weights.
        prior: one positive number a class; the run's own if None.

    Raises:
        InputError: a run without errors, or settings that cannot be used.
    """
    spec = spec_with_errors(folder)
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
    scale = scale_of(spec.num_dimensions, spec.reduction, tau)  # type: ignore[arg-type]
    p = spec.prior if prior is None else tuple(map(float, prior))
    log_prior = log_prior_of(p, len(spec.class_names))
    also = tuple(name for name in (spec.loss, *spec.also) if name != loss)
    now = replace(spec, loss=loss, also=also, weights=found, temperature=tau, prior=p)
    rows = read_rows(folder)
    with open_run(out, replace(now, command=f"rescore {folder}")) as run:
        for batch in rows.to_batches(max_chunksize=1000):
            table = pa.Table.from_batches([batch])
            table = table if loss == spec.loss else _with_loss(table, spec.loss, loss)
            run.extend(_answered(table, spec, found, scale, log_prior))


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
    names, k = spec.class_names, len(spec.class_names)
    predictions: list[str | None] = [None] * len(rows)
    posteriors: list[list[float] | None] = [None] * len(rows)
    counts = [0 if t is None else len(t) for t in rows["timesteps"].to_pylist()]
    flat = torch.from_numpy(rows["errors"].combine_chunks().flatten().flatten().to_numpy().copy())
    times = torch.from_numpy(rows["timesteps"].combine_chunks().flatten().to_numpy().copy())
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    for n in sorted(set(counts) - {0}):  # images with the same number of draws together
        at = [i for i, count in enumerate(counts) if count == n]
        errors = torch.stack([flat[k * starts[i] : k * starts[i] + k * n].view(k, n) for i in at]).double()
        t = torch.stack([times[starts[i] : starts[i] + n] for i in at])
        means = mean_errors(errors, None if weights is None else weights_at(weights, t / spec.num_timesteps))
        if bool(means.isnan().all(1).any()):
            raise InputError("all draws of an image are at times whose weight is 0: choose other weights")
        known = (~errors.isnan()).sum(2)
        left = known == known.amax(1, keepdim=True)
        logits = (log_prior - scale * means).where(left, -torch.inf)
        for i, p in zip(at, logits.softmax(1), strict=True):
            predictions[i], posteriors[i] = names[int(p.argmax())], p.tolist()
    return _replaced(rows, {"prediction": predictions, "posterior": posteriors, "confidence": [None] * len(rows)})
