"""Print results as a table, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..analysis.inversion import Reconstruction

Row = dict[str, Any]


class Format(StrEnum):
    """Format on standard output."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


def writer(output: Format, top: int | None) -> AbstractContextManager[Callable[[Row], None]]:
    """Return a context in which rows of classifications are printed; see `_writer`.

    Args:
        output: the format.
        top: number of best labels to print; 3 in a table and all otherwise if None.
    """
    columns = ["image", "label", "score", "confidence", "num_evaluations", "cost", "seconds", "scores"]
    columns += ["shortlist", "undecided", "ties", "notes", "error"]
    return _writer(output, columns, lambda rows: _table(rows, top or 3), lambda row: _cut(row, top))


def score_writer(output: Format) -> AbstractContextManager[Callable[[Row], None]]:
    """Return a context in which rows of caption scores are printed; see `_writer`."""
    columns = ["image", "caption", "score", "standard_error", "mean_error", "unconditional_error", "num_evaluations"]
    return _writer(output, [*columns, "error"], _score_table)


@contextmanager
def _writer(
    output: Format,
    columns: list[str],
    table: Callable[[list[Row]], Table],
    cut: Callable[[Row], Row] = lambda row: row,
) -> Iterator[Callable[[Row], None]]:
    """Print lines at once, and a table at the end or when the work is interrupted."""
    if output is Format.jsonl:
        yield lambda row: print(json.dumps(cut(row)), flush=True)
    elif output is Format.csv:
        write = _csv_writer(columns)
        yield lambda row: write(cut(row))
    else:
        rows: list[Row] = []
        try:
            yield rows.append
        finally:
            if rows:
                Console().print(table(rows))


def _cut(row: Row, top: int | None) -> Row:
    return row | {"scores": dict(islice(row["scores"].items(), top))} if "scores" in row else row


def _csv_writer(columns: list[str]) -> Callable[[Row], None]:
    out = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    started = False

    def write(row: Row) -> None:
        nonlocal started
        if not started:  # not before: nothing is printed if the work fails to start
            out.writeheader()
            started = True
        out.writerow({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()})
        sys.stdout.flush()

    return write


def _table(rows: list[Row], top: int) -> Table:
    table = Table("image", "label", "score", "runners-up", "evaluations", "seconds")
    for column in table.columns:
        column.overflow = "fold"
    for i in (2, 4, 5):
        table.columns[i].justify = "right"
    for row in rows:
        if "error" in row:
            table.add_row(Text(row["image"]), Text("failed", "red"), "", Text(row["error"]))
            continue
        label = row["label"]
        if "ties" in row:
            label += f" (tied with {', '.join(row['ties'])})"
        elif "undecided" in row:
            label += f" (undecided between {', '.join(row['undecided'])})"
        others = islice(row["scores"].items(), 1, top)
        then = ", ".join(f"{name} {p:.3f}" for name, p in others)
        image = row["image"] + (f" ({'; '.join(row['notes'])})" if "notes" in row else "")
        score, seconds = f"{row['score']:.3f}", f"{row['seconds']:.2f}"
        # Text, because rich would take the name of a file [red]x.png for markup.
        table.add_row(Text(image), Text(label), score, Text(then), str(row["num_evaluations"]), seconds)
    return table


def _score_table(rows: list[Row]) -> Table:
    table = Table("image", "caption", "score", "± standard error", "evaluations")
    for column in table.columns:
        column.overflow = "fold"
    for i in (2, 3, 4):
        table.columns[i].justify = "right"
    for row in rows:
        image, caption = Text(row["image"]), Text(row["caption"])
        if "error" in row:
            table.add_row(image, caption, Text("failed", "red"), Text(row["error"]))
            continue
        error = "–" if row["standard_error"] is None else f"{row['standard_error']:.2f}"
        table.add_row(image, caption, f"{row['score']:.2f}", error, str(row["num_evaluations"]))
    return table


def print_reconstructions(found: Sequence[Reconstruction], output: Format) -> None:
    """Print one row per prompt; see `_writer`."""
    columns = ["prompt", "rmse", "ssim", "lpips"]
    with _writer(output, columns, _reconstruction_table) as write:
        for r in found:
            write({name: getattr(r, name) for name in columns})


def _reconstruction_table(rows: list[Row]) -> Table:
    table = Table("prompt", "RMSE", "SSIM", "LPIPS")
    for row in rows:
        distances = ("–" if row[name] is None else f"{row[name]:.4f}" for name in ("rmse", "ssim", "lpips"))
        table.add_row(Text(row["prompt"] or "(autoencoder alone)"), *distances)
    return table
