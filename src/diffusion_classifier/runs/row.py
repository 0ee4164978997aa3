"""One row of a run: everything that is stored for an image.

The Parquet schema of shards, the columns that a summary reads and the table in docs/runs.md are derived from
`ResultRow`. A new column needs its field here, the code that computes it, the table in the docs
(`python tools/row_table.py`), and a test.

Shape legend: K candidates (classes or captions), N draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from ..search.classification import Classification
    from ..search.jobs import ScoredImage

ErrorTable = Sequence[Sequence[float]]
"""Error of each candidate (row) at each draw (column); NaN where not evaluated."""

_TABLE = pa.list_(pa.list_(pa.float32()))


def _column(kind: pa.DataType, *, rescored: bool = False, large: bool = False, **options: Any) -> Any:
    """Declare a column.

    Args:
        kind: type of the column in Parquet.
        rescored: whether the value depends on weights, temperature and prior, so that `rescore` must replace it.
        large: whether the column holds error tables, which most readers leave on disk.
        **options: of `dataclasses.field`.
    """
    return field(metadata={"kind": kind, "rescored": rescored, "large": large}, **{"default": None, **options})


@dataclass(frozen=True)
class ResultRow:
    """Result for one image. A field is None where it does not apply, and for a failed image."""

    id: str = _column(pa.string(), default=MISSING)
    """Identifier of the image within its data set."""

    truth: str | None = _column(pa.string())
    """True class or caption; null if unknown."""

    prediction: str | None = _column(pa.string(), rescored=True)
    """Predicted class or caption; null if several tie for the highest probability."""

    posterior: Sequence[float] | None = _column(pa.list_(pa.float64()), rescored=True)
    """Posterior probability of each candidate, in the order of `candidates` or of the class names; 0 if eliminated."""

    confidence: float | None = _column(pa.float64(), rescored=True)
    """Probability that more draws would not change the prediction; null after `rescore`."""

    undecided: Sequence[str] | None = _column(pa.list_(pa.string()))
    """Candidates that the search could not tell apart; empty if it found a single winner."""

    num_evaluations: int | None = _column(pa.int64())
    """Number of network evaluations, those of a shortlist included."""

    cost: float | None = _column(pa.float64())
    """Cost of these evaluations in full predictions of the network; less than their number where work is shared."""

    seconds: float | None = _column(pa.float64())
    """Seconds from the first prediction to the last; images that are evaluated together share them."""

    status: str = _column(pa.string(), default="done")
    """`done`, or `failed` for an error record."""

    reason: str | None = _column(pa.string())
    """Error message of a failed image."""

    notes: Sequence[str] | None = _column(pa.list_(pa.string()))
    """How the image was read, such as `first of 12 frames`, and warnings of its decoder; null if there are none."""

    errors: Sequence[Sequence[float]] | None = _column(_TABLE, large=True)
    """Error of each candidate at each draw, with `--store-errors`; NaN where not evaluated. The last row is that of the
    null condition if the run evaluated it."""

    timesteps: Sequence[float] | None = _column(pa.list_(pa.float64()), large=True)
    """Timestep of each draw, with `--store-errors`."""

    extra_errors: Mapping[str, ErrorTable] | None = _column(pa.map_(pa.string(), _TABLE), large=True)
    """Error tables of the same draws under other losses, by the name of the loss."""

    candidates: Sequence[str] | None = _column(pa.list_(pa.string()))
    """Captions of the image; null for classes, which are the same for all images and are listed in `spec.json`."""

    tag: str | None = _column(pa.string())
    """Category of the image in a caption task, such as `object` or `relation` in Winoground."""

    match_scores: Sequence[float] | None = _column(pa.list_(pa.float64()), rescored=True)
    """How well each candidate matches the image, comparable between images: the score against the null condition, or
    the logit of a one-pass model; null if unknown."""

    @property
    def done(self) -> bool:
        """Return whether the image has a result."""
        return self.status == "done"

    @property
    def is_correct(self) -> bool:
        """Return whether the prediction is the true class or caption; False for a tie or an unknown truth."""
        return self.prediction is not None and self.prediction == self.truth

    @property
    def score(self) -> float:
        """Return the posterior probability of the best candidate; 0 for a failed image."""
        return max(self.posterior or (0.0,))

    def with_result(self, result: Classification, own: Mapping[str, str] | None = None) -> ResultRow:
        """Return the row with the result of a diffusion model, or with its failure.

        Args:
            result: the result for the image.
            own: name in the result → name in the data set; the same if None.
        """
        if result.failure is not None:
            return replace(self, status="failed", reason=result.failure)
        own = own or dict(zip(result.class_names, result.class_names, strict=True))
        best = str(result.label)
        tied = (best, *result.ties) if result.ties else ()  # float32 cannot tell these apart, so none is predicted
        return replace(
            self,
            prediction=None if tied else own[best],
            posterior=result.posterior.tolist(),
            confidence=result.confidence,
            undecided=[own[name] for name in result.undecided or tied],
            num_evaluations=result.num_evaluations,
            cost=result.cost,
            seconds=result.seconds,
            notes=list(result.notes) or None,
        )

    def with_errors(self, result: Classification | ScoredImage) -> ResultRow:
        """Return the row with the error tables of its image."""
        return replace(
            self,
            errors=result.errors.tolist(),
            timesteps=result.t.double().tolist(),
            extra_errors={loss: table.tolist() for loss, table in result.extra_losses.items()},
        )


SCHEMA = pa.schema([(f.name, f.metadata["kind"]) for f in fields(ResultRow)])
"""Columns of a shard."""
SUMMARY_COLUMNS = tuple(f.name for f in fields(ResultRow) if not f.metadata["large"])
"""All columns but error tables; a summary is computed from these."""
RESCORED_COLUMNS = tuple(f.name for f in fields(ResultRow) if f.metadata["rescored"])
"""Columns that `rescore` replaces; null unless it can compute them."""
OLD_NAMES = {"label": "truth", "also": "extra_errors", "fits": "match_scores"}
"""Column names of runs of version 1 → today's."""


def rows_to_table(rows: Iterable[ResultRow]) -> pa.Table:
    """Return rows as a table with all columns."""
    values = []
    for row in rows:
        extra = row.extra_errors
        values.append(vars(row) | {"extra_errors": None if extra is None else list(extra.items())})
    return pa.Table.from_pylist(values, SCHEMA)


def table_to_rows(table: pa.Table) -> list[ResultRow]:
    """Return the rows of a table, which has at least the column `id`; fields of missing columns are None."""
    return [ResultRow(**values) for values in table.to_pylist(maps_as_pydicts="strict")]
