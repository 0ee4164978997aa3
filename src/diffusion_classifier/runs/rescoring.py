"""New predictions from the stored error tables of a run, without the network.

Shape legend: M images, K candidates, N draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from .row import RESCORED_COLUMNS
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
    """Compute new predictions, and store them as another run of the same images.

    Args:
        folder: folder of a run with errors.
        out: folder of the new run.
        loss: as in `with_settings`.
        weights: as in `with_settings`.
        temperature: as in `with_settings`.
        prior: as in `with_settings`.

    Raises:
        InputError: the run has no errors, a setting is invalid, or both folders are the same.
    """
    if out.resolve() == folder.resolve():
        raise InputError(f"{folder} keeps its own predictions: choose another --out")
    spec = spec_with_errors(folder)
    now = with_settings(folder, spec, loss=loss, weights=weights, temperature=temperature, prior=prior)
    rows = read_rows(folder)
    with open_run(out, replace(now, command=f"rescore {folder}")) as run:
        todo = rows.filter(pc.invert(pc.is_in(rows["id"], pa.array(sorted(run.done), pa.string()))))
        for batch in todo.to_batches(max_chunksize=1000):
            run.extend(rescored(pa.Table.from_batches([batch]), spec, now))


def with_settings(
    folder: Path,
    spec: RunSpec,
    *,
    loss: str | None = None,
    weights: WeightsSource | None = None,
    temperature: float | None = None,
    prior: Sequence[float] | None = None,
) -> RunSpec:
    """Return the spec of the same run under other settings of the posterior.

    Args:
        folder: folder of the run, for messages.
        spec: spec of the run, which has errors.
        loss: one of the losses whose errors the run holds; its own if None.
        weights: timestep weights, as `read_weights` takes them, or "uniform"; the run's own if None.
        temperature: temperature of the posterior; if None the run's own, which was fitted for its own weights.
        prior: one positive number per class; the run's own if None.

    Raises:
        InputError: a setting is invalid.
    """
    loss = spec.loss if loss is None else loss
    stored = (spec.loss, *spec.extra_losses)
    if loss not in stored:
        raise InputError(
            f"{folder} holds errors of the losses {', '.join(stored)}, not of {loss!r}, which "
            f"`evaluate --store-errors --also {loss}` keeps"
        )
    found: Weights | None = spec.weights
    if weights is not None:
        found = None if weights == "uniform" else read_weights(weights)
    tau = spec.temperature if temperature is None else temperature
    p = spec.prior if prior is None else tuple(map(float, prior))
    if p is not None and spec.kind != "classes":
        raise InputError(f"a prior is of classes, and the images of {folder} have captions of their own")
    others = tuple(name for name in stored if name != loss)
    now = replace(spec, loss=loss, extra_losses=others, weights=found, temperature=tau, prior=p)
    _scale_and_prior(now)  # raises for invalid values
    return now


def _scale_and_prior(spec: RunSpec) -> tuple[float, Tensor]:
    scale = scale_of(spec.num_dimensions, spec.reduction, spec.temperature)  # type: ignore[arg-type]
    return scale, log_prior_of(spec.prior, len(spec.class_names))


def rescored(rows: pa.Table, spec: RunSpec, now: RunSpec) -> pa.Table:
    """Return the rows of a run with new predictions.

    Eliminated candidates stay eliminated, because they have too few errors. `confidence` becomes null.

    Args:
        rows: rows of the run, all columns.
        spec: spec of the run.
        now: spec with the new settings, see `with_settings`.

    Raises:
        InputError: all draws of an image have weight 0.
    """
    rows = rows if now.loss == spec.loss else _with_loss(rows, spec.loss, now.loss)
    return _predicted(rows, spec, now.weights, *_scale_and_prior(now))


def _with_loss(rows: pa.Table, own: str, loss: str) -> pa.Table:
    """Return the rows with the error tables of `loss` as their own, and those of the run's loss among the others."""
    chosen, others = [], []
    for errors, extra in zip(rows["errors"].to_pylist(), rows["extra_errors"].to_pylist(), strict=True):
        tables = None if errors is None else {**dict(extra), own: errors}  # None for a failed image
        chosen.append(tables and tables.pop(loss))
        others.append(tables and list(tables.items()))
    return _replaced(rows, {"errors": chosen, "extra_errors": others})


def _replaced(rows: pa.Table, columns: Mapping[str, list[Any]]) -> pa.Table:
    for name, values in columns.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    return rows


def _predicted(rows: pa.Table, spec: RunSpec, weights: Weights | None, scale: float, log_prior: Tensor) -> pa.Table:
    """Return the rows with new predictions; images with error tables of the same shape are computed together."""
    names, captioned = rows["candidates"].to_pylist(), spec.kind != "classes"
    predictions: list[str | None] = [None] * len(rows)
    posteriors: list[list[float] | None] = [None] * len(rows)
    match_scores: list[list[float] | None] = [None] * len(rows)
    for at, errors, t in _tables_by_shape(rows):
        means = mean_errors(errors, None if weights is None else weights_at(weights, t / spec.num_timesteps))
        if bool(means.isnan().all(1).any()):
            raise InputError("all draws of an image are at times whose weight is 0: choose other weights")
        if spec.unconditional:
            for i, gains in zip(at, scale * (means[:, -1:] - means[:, :-1]), strict=True):
                match_scores[i] = gains.tolist()
            errors, means = errors[:, :-1], means[:, :-1]
        known = (~errors.isnan()).sum(2)
        left = known == known.amax(1, keepdim=True)
        logits = (log_prior - scale * means if len(log_prior) else -scale * means).where(left, -torch.inf)
        for i, p, logit, mean in zip(at, probabilities(logits.log_softmax(1)), logits, means, strict=True):
            best, posteriors[i] = int(p.argmax()), p.tolist()
            own = names[i] if captioned else spec.class_names
            tied = int((logit[best] - logit <= scale * TIE * mean[best]).sum()) > 1
            predictions[i] = None if tied else own[best]
    unknown: dict[str, list[Any]] = {name: [None] * len(rows) for name in RESCORED_COLUMNS}
    return _replaced(rows, unknown | {"prediction": predictions, "posterior": posteriors, "match_scores": match_scores})


def _tables_by_shape(rows: pa.Table) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield (positions of images, errors (M, K, N), timesteps (M, N)), float64, by shape; failed images have none."""
    lengths = (pc.list_value_length(rows[name]).fill_null(0).to_pylist() for name in ("errors", "timesteps"))
    shapes: list[tuple[int, int]] = list(zip(*lengths, strict=True))
    flat = torch.from_numpy(rows["errors"].combine_chunks().flatten().flatten().to_numpy().copy())
    times = torch.from_numpy(rows["timesteps"].combine_chunks().flatten().to_numpy().copy())
    starts = torch.tensor([0, *(k * n for k, n in shapes)]).cumsum(0).tolist()
    first_times = torch.tensor([0, *(n for _, n in shapes)]).cumsum(0).tolist()
    for k, n in sorted(set(shapes) - {(0, 0)}):
        at = [i for i, shape in enumerate(shapes) if shape == (k, n)]
        errors = torch.stack([flat[starts[i] : starts[i] + k * n].view(k, n) for i in at]).double()
        yield at, errors, torch.stack([times[first_times[i] : first_times[i] + n] for i in at])
