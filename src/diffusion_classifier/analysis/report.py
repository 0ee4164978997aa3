"""A run as one page that needs nothing beside it: figures, best and worst images, and how to repeat it.

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
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ..data.images import ImageError, load_image
from ..data.labelled import LabelledSource
from ..errors import InputError
from ..runs.source import check_source
from ..runs.spec import RunSpec, read_spec, refuse_captions
from ..runs.store import read_rows, refuse_unlabelled, with_status
from ..runs.summary import Summary, summary_of
from .calibration_figure import draw_reliability
from .html import drawn, embedded, write_page
from .run_figures import draw_confusion, draw_evaluations, draw_times

NUM_SHOWN = 12
"""Best, and worst, images."""


def write_report(folder: Path, out: Path, source: LabelledSource | None = None) -> None:
    """Write the page.

    Args:
        folder: of the run.
        out: file to write.
        source: the images of the run, for showing some; none are shown without.

    Raises:
        InputError: no run, nothing done yet, images of something else, or the file cannot be written.
    """
    spec, rows = read_spec(folder), read_rows(folder)
    refuse_captions(folder, spec, "a report")
    refuse_unlabelled(folder, rows)
    summary = summary_of(folder, spec, rows)
    if summary.accuracy is None:
        raise InputError(f"no image of {folder} is done yet: there is nothing to report")
    if source is not None:
        check_source(source, spec, folder)
    done = with_status(rows, "done")
    truth, answer = (np.array(done[name].to_pylist()) for name in ("label", "prediction"))
    score = np.array([max(p) for p in done["posterior"].to_pylist()])
    figures: list[tuple[str, Callable[[Any], None]]] = [
        ("Answers by true class", lambda axes: draw_confusion(axes, truth, answer, spec.class_names)),
        ("Is a score what it says?", lambda axes: draw_reliability(axes, score, truth == answer)),
    ]
    spent = done["num_evaluations"].to_numpy()
    if spent.any():  # a contrastive model has none
        figures.append(("Evaluations", lambda axes: draw_evaluations(axes, spent, truth == answer)))
    if spec.store_errors and spec.sees_all and len(done) > 1:  # of one alone there is no interval
        figures.append(("What each time says", lambda axes: draw_times(axes, done, truth, spec)))
    parts = [_head(spec, summary), *(f"<h2>{title}</h2>\n{drawn(title, draw)}" for title, draw in figures)]
    order = np.argsort(score)
    right = [i for i in order[::-1] if truth[i] == answer[i]][:NUM_SHOWN]
    wrong = [i for i in order[::-1] if truth[i] != answer[i]][:NUM_SHOWN]
    for title, chosen in (("Right, and surest of it", right), ("Wrong, and surest of it", wrong)):
        parts.append(f"<h2>{title}</h2>\n" + _shown(done, chosen, score, source))
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
        "evaluations an image": f"{s.num_evaluations:,.1f} ({s.strategy})",
        "calibration error of the score": f"{s.calibration_error:.3f}",
        "undecided": f"{s.undecided:.1%}",
    }
    lines = "".join(f"<tr><th>{html.escape(k)}<td>{html.escape(v)}" for k, v in facts.items())
    return f"<h1>{html.escape(s.model)} on {html.escape(spec.task or spec.source)}</h1>\n<table>{lines}</table>"


def _shown(done: pa.Table, chosen: Sequence[int], score: NDArray[np.float64], source: LabelledSource | None) -> str:
    position = {} if source is None else {id_: i for i, id_ in enumerate(source.ids)}
    figures = []
    for row, i in zip(
        done.take(pa.array(chosen, pa.int64())).select(["id", "label", "prediction"]).to_pylist(), chosen, strict=True
    ):
        picture = ""
        if source is not None:
            try:
                image = load_image(source.read(position[row["id"]])).image
            except ImageError as e:
                picture = html.escape(str(e))
            else:
                image.thumbnail((256, 256), Image.Resampling.LANCZOS)
                picture = embedded(image)
        wrong = (
            "" if row["prediction"] == row["label"] else f" <span class=wrong>not {html.escape(row['label'])}</span>"
        )
        told = f"{html.escape(row['prediction'] or 'undecided')} {score[i]:.1%}{wrong}<br>{html.escape(row['id'])}"
        figures.append(f"<figure>{picture}<figcaption>{told}</figcaption></figure>")
    return f"<div class=shown>{''.join(figures) or 'None.'}</div>"


def _foot(spec: RunSpec, s: Summary) -> str:
    classes = sorted((s.per_class or {}).items(), key=lambda pair: pair[1])
    lines = "".join(f"<tr><td>{html.escape(name)}<td>{share:.1%}" for name, share in classes)
    failed = "".join(f"<li>{html.escape(reason)}" for reason in s.reasons)
    again = f"<h2>To repeat it</h2><pre>diffusion-classifier {html.escape(spec.command)}</pre>" if spec.command else ""
    settings = html.escape(json.dumps(asdict(spec), indent=1, ensure_ascii=False, default=list))
    return (
        f"<h2>Classes, hardest first</h2><table>{lines}</table>"
        + (f"<h2>Failed</h2><ul>{failed}</ul>" if failed else "")
        + f"{again}<details><summary>All settings</summary><pre>{settings}</pre></details>"
    )
