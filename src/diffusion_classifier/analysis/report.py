"""Report of a run as one self-contained HTML page: metrics, figures, example images, and the command.

Shape legend: M images, K classes.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import ImageError, load_image
from ..data.labelled import LabelledSource
from ..errors import InputError
from ..runs.row import ResultRow, table_to_rows
from ..runs.source import check_source
from ..runs.spec import RunSpec, check_class_run, read_spec
from ..runs.store import check_labelled, read_rows, with_status
from ..runs.summary import Summary, summary_of
from .calibration_figure import draw_reliability
from .html import drawn, embedded, write_page
from .run_figures import draw_confusion, draw_evaluations, draw_times

NUM_SHOWN = 12
"""Number of correct images, and of wrong ones, that are shown."""


def write_report(folder: Path, out: Path, source: LabelledSource | None = None) -> None:
    """Write the report of a run.

    Args:
        folder: folder of the run.
        out: file to write.
        source: images of the run; no images are shown if None.

    Raises:
        InputError: the folder holds no run, no image is done, `source` has other images, or the file cannot be written.
    """
    spec, rows = read_spec(folder), read_rows(folder)
    check_class_run(folder, spec, "a report")
    check_labelled(folder, rows)
    summary = summary_of(folder, spec, rows)
    if summary.accuracy is None:
        raise InputError(f"no image of {folder} is done yet: there is nothing to report")
    if source is not None:
        check_source(source, spec, folder)
    done = with_status(rows, "done")
    images = table_to_rows(done.select(["id", "truth", "prediction", "posterior"]))
    truth, prediction = np.array([row.truth for row in images]), np.array([row.prediction for row in images])
    score, correct = np.array([row.score for row in images]), np.array([row.is_correct for row in images])
    figures: list[tuple[str, Callable[[Any], None]]] = [
        ("Confusion matrix", lambda axes: draw_confusion(axes, truth, prediction, spec.class_names)),
        ("Reliability diagram", lambda axes: draw_reliability(axes, score, correct)),
    ]
    spent = done["num_evaluations"].to_numpy()
    if spent.any():  # baselines have none
        figures.append(("Evaluations per image", lambda axes: draw_evaluations(axes, spent, correct)))
    if spec.store_errors and spec.sees_all and len(done) > 1:  # a single image has no interval
        figures.append(("Lead of the true class by timestep", lambda axes: draw_times(axes, done, truth, spec)))
    parts = [_head(spec, summary), *(f"<h2>{title}</h2>\n{drawn(title, draw)}" for title, draw in figures)]
    by_score = [images[i] for i in np.argsort(score)[::-1]]
    for title, wanted in (("Correct, highest probability first", True), ("Wrong, highest probability first", False)):
        chosen = [row for row in by_score if row.is_correct == wanted][:NUM_SHOWN]
        parts.append(f"<h2>{title}</h2>\n" + _shown(chosen, source))
    parts.append(_foot(spec, summary))
    write_page(out, f"{summary.model} on {spec.task or spec.source}", parts)


def _head(spec: RunSpec, s: Summary) -> str:
    accuracy, per_class = s.accuracy, s.mean_per_class
    assert accuracy is not None
    assert per_class is not None
    facts = {
        "accuracy": str(accuracy),
        "mean per class": str(per_class),
        "images": f"{s.num_done:,} of {s.num_images:,}" + (f"; {s.num_failed} failed" if s.num_failed else ""),
        "evaluations per image": f"{s.num_evaluations:,.1f} ({s.strategy})",
        "expected calibration error": f"{s.calibration_error:.3f}",
        "undecided": f"{s.undecided:.1%}",
    }
    lines = "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(v)}" for k, v in facts.items())
    return f"<h1>{html.escape(s.model)} on {html.escape(spec.task or spec.source)}</h1>\n<table>{lines}</table>"


def _shown(rows: Sequence[ResultRow], source: LabelledSource | None) -> str:
    """Return images with their predictions."""
    position = {} if source is None else {id_: i for i, id_ in enumerate(source.ids)}
    figures = []
    for row in rows:
        picture = ""
        if source is not None:
            try:
                image = load_image(source.read(position[row.id])).image
            except ImageError as e:
                picture = html.escape(str(e))
            else:
                image.thumbnail((256, 256), Image.Resampling.LANCZOS)
                picture = embedded(image)
        wrong = "" if row.is_correct else f" <span class=wrong>not {html.escape(str(row.truth))}</span>"
        caption = f"{html.escape(row.prediction or 'undecided')} {row.score:.1%}{wrong}<br>{html.escape(row.id)}"
        figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return f"<div class=shown>{''.join(figures) or 'None.'}</div>"


def _foot(spec: RunSpec, s: Summary) -> str:
    classes = sorted((s.per_class or {}).items(), key=lambda pair: pair[1])
    lines = "".join(f"<tr><td>{html.escape(name)}<td>{share:.1%}" for name, share in classes)
    failed = "".join(f"<li>{html.escape(reason)}" for reason in s.reasons)
    again = f"<h2>Command</h2><pre>diffusion-classifier {html.escape(spec.command)}</pre>" if spec.command else ""
    settings = html.escape(json.dumps(asdict(spec), indent=1, ensure_ascii=False, default=list))
    return (
        f"<h2>Accuracy by class, lowest first</h2><table>{lines}</table>"
        + (f"<h2>Failed images</h2><ul>{failed}</ul>" if failed else "")
        + f"{again}<details><summary>All settings</summary><pre>{settings}</pre></details>"
    )
