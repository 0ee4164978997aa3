"""The tab "Runs": the images of a run, its errors, and its predictions under other timestep weights."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import pyarrow as pa
from PIL import Image

from ..data.images import ImageError, load_image
from ..data.labelled import LabelledSource
from ..errors import InputError
from ..runs.rescoring import rescored, with_settings
from ..runs.row import SCHEMA, SUMMARY_COLUMNS, ResultRow, table_to_rows
from ..runs.source import check_source, open_run_source
from ..runs.spec import RunSpec, check_class_run, read_spec, spec_with_errors
from ..runs.store import read_rows, with_status
from ..runs.summary import compare_rows, summary_of
from .html_parts import bars
from .inputs import sentences

PER_PAGE = 24
"""Images per page."""
KNOTS = 5
"""Timesteps whose weight can be set."""
FILTERS = ("all", "wrong", "right", "undecided")


class _Controls(NamedTuple):
    """Components of the tab."""

    run: gr.Dropdown
    kind: gr.Radio
    truth: gr.Dropdown
    page: gr.Number
    summary: gr.HTML
    gallery: gr.Gallery
    details: gr.HTML
    weights: list[gr.Slider]
    temperature: gr.Slider
    rescore: gr.Button
    reset: gr.Button
    comparison: gr.Markdown


def build(page: gr.Blocks, folders: list[Path], data: str | None) -> None:
    """Add the components of the tab and their events.

    Args:
        page: the page that the tab is on.
        folders: folders of the runs that can be browsed.
        data: folder, file or hub id of their images; the one the runs evaluated if None.

    Raises:
        InputError: a folder holds no run, or a run on captions.
    """
    if not folders:
        gr.Markdown(
            "No run was given. Make one with `diffusion-classifier evaluate fashion-sample --store-errors --out run/`, "
            "and start this page with `--run run/`."
        )
        return
    for folder in folders:
        check_class_run(folder, read_spec(folder), "this page")
    sources = {folder: _source(folder, data) for folder in folders}
    _add_events(page, _Events(sources), _add_controls([str(folder) for folder in folders]))


def _add_controls(names: list[str]) -> _Controls:
    with gr.Row():
        run = gr.Dropdown(names, value=names[0], label="Run", scale=3)
        kind = gr.Radio(FILTERS, value="wrong", label="Images", scale=3)
        truth = gr.Dropdown(["any"], value="any", label="True class", scale=2)
        page = gr.Number(1, minimum=1, precision=0, label="Page", scale=1)
    summary = gr.HTML(elem_id="run")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                label="Images", columns=4, height="auto", allow_preview=False, object_fit="contain", format="png",
                elem_classes="dc-photo",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=300):
            details = gr.HTML(elem_id="details", container=True)
    with gr.Accordion("Rescore with other timestep weights", open=False):
        gr.Markdown("Uses the stored errors, without the network. Timesteps run from no noise, left, to pure noise.")
        with gr.Row():
            weights = [
                gr.Slider(0, 4, 1, step=0.05, label=f"t/T = {i / (KNOTS - 1):g}", min_width=120) for i in range(KNOTS)
            ]
        temperature = gr.Slider(-2, 3, 0, step=0.05, label="Temperature: power of ten, times the run's own")
        with gr.Row():
            rescore = gr.Button("Rescore", variant="primary")
            reset = gr.Button("Reset to the run's settings")
        comparison = gr.Markdown(elem_id="compared")
    return _Controls(
        run, kind, truth, page, summary, gallery, details, weights, temperature, rescore, reset, comparison
    )


def _add_events(page: gr.Blocks, events: _Events, controls: _Controls) -> None:
    settings, rows = gr.State(None), gr.State([])
    c, browse = controls, {"api_visibility": "private"}
    selection = [c.run, c.kind, c.truth, c.page]
    asked, out = [*selection, settings], [c.summary, c.gallery, rows, c.truth, c.page]
    all_out = [*out, c.comparison, settings]
    c.kind.input(events.look_at_first_page, asked, out, **browse)
    c.truth.input(events.look_at_first_page, asked, out, **browse)
    c.run.input(lambda folder, wanted: events.reset(folder, wanted, "any", 1), [c.run, c.kind], all_out, **browse)
    c.page.submit(events.look, asked, out, **browse)
    c.gallery.select(_details_of, rows, c.details, **browse)
    c.rescore.click(events.rescore, [*selection, c.temperature, *c.weights], all_out, **browse)
    c.reset.click(events.reset, selection, all_out, **browse)
    page.load(events.look, asked, out, **browse)


class _Events:
    """Functions that gradio calls.

    Args:
        sources: folder of a run → its images, or None and the reason.
    """

    def __init__(self, sources: dict[Path, tuple[LabelledSource | None, str]]) -> None:
        self.sources = sources

    def show(
        self, path: Path, spec: RunSpec, rows: pa.Table, wanted: str, true_class: str, number: int
    ) -> tuple[Any, ...]:
        """Return a line on the selected images, one page of them, and the state of the controls."""
        selected = _filtered(rows, spec, wanted, true_class)
        last = max(1, -(-len(selected) // PER_PAGE))
        number = min(max(int(number or 1), 1), last)
        on_page = selected.slice((number - 1) * PER_PAGE, PER_PAGE)
        chosen = table_to_rows(on_page.select(["id", "truth", "prediction", "posterior", "num_evaluations"]))
        source, why_none = self.sources[path]
        pictures = [_picture(source, row) for row in chosen] if source else []
        line = f"{len(selected):,} of {len(rows):,} images; page {number} of {last}"
        line += f". The images are not found: {html.escape(why_none)}" if source is None else ""
        choices = gr.Dropdown(choices=["any", *spec.class_names], value=true_class)
        return line, pictures, [(row, spec.class_names) for row in chosen], choices, number

    def look(self, folder: str, wanted: str, true_class: str, number: int, settings: Any) -> tuple[Any, ...]:
        """Show a page of the selected images, with other settings if they are not None."""
        with sentences():
            path = _allowed(folder, list(self.sources))
            spec, rows = _read_run(path, with_errors=settings is not None)
            if settings is not None:
                spec, rows = _rescored(path, spec, rows, settings)
            return self.show(path, spec, rows, wanted, true_class, number)

    def look_at_first_page(
        self, folder: str, wanted: str, true_class: str, _page: int, settings: Any
    ) -> tuple[Any, ...]:
        """Show the first page."""
        return self.look(folder, wanted, true_class, 1, settings)

    def reset(self, folder: str, wanted: str, true_class: str, number: int) -> tuple[Any, ...]:
        """Show a page under the run's own settings."""
        return *self.look(folder, wanted, true_class, number, None), "", None

    def rescore(
        self, folder: str, wanted: str, true_class: str, number: int, power: float, *values: float
    ) -> tuple[Any, ...]:
        """Rescore the run with other settings, and show a page."""
        with sentences():
            path, settings = _allowed(folder, list(self.sources)), (tuple(values), 10**power)
            spec, before = _read_run(path, with_errors=True)
            now, after = _rescored(path, spec, before, settings)
            return (
                *self.show(path, now, after, wanted, true_class, number),
                _compared(path, now, before, after),
                settings,
            )


def _details_of(rows: list[Any], event: gr.SelectData) -> str:
    """Return HTML on the selected image."""
    row, names = rows[event.index]
    facts = f"<p>{html.escape(row.id)}<br>truth: {html.escape(row.truth or 'unknown')}<br>"
    facts += f"{row.num_evaluations:,} evaluations</p>"
    return bars(dict(zip(names, row.posterior, strict=True)), title=row.prediction or "undecided") + facts


def _allowed(folder: str, folders: list[Path]) -> Path:
    """Return the path of a folder that the page was started with; a client can send any name.

    Raises:
        InputError: the page was not started with this folder.
    """
    for path in folders:
        if str(path) == folder:
            return path
    raise InputError(f"{folder!r} is none of the runs that this page was started with")


def _read_run(folder: Path, with_errors: bool) -> tuple[RunSpec, pa.Table]:
    """Return the spec and the finished rows of a run, with or without the errors, which may be large.

    Raises:
        InputError: no image is done.
    """
    columns = SCHEMA.names if with_errors else SUMMARY_COLUMNS
    spec, done = read_spec(folder), with_status(read_rows(folder, columns), "done")
    if not len(done):
        raise InputError(f"no image of {folder} is done yet")
    return spec, done


def _rescored(
    folder: Path, spec: RunSpec, rows: pa.Table, settings: tuple[tuple[float, ...], float]
) -> tuple[RunSpec, pa.Table]:
    """Rescore rows with other timestep weights and another temperature, as a multiple of the run's own.

    Raises:
        InputError: the run has no errors, or all weights are 0.
    """
    weights, factor = settings
    spec_with_errors(folder)  # raises if there are no errors
    now = with_settings(folder, spec, weights=weights, temperature=spec.temperature * factor)
    return now, rescored(rows, spec, now)


def _filtered(rows: pa.Table, spec: RunSpec, wanted: str, true_class: str) -> pa.Table:
    if wanted not in FILTERS or true_class not in ("any", *spec.class_names):
        raise InputError(f"there are no images {wanted!r} of {true_class!r}")
    truth = np.array(rows["truth"].to_pylist(), dtype=object)
    right = truth == np.array(rows["prediction"].to_pylist(), dtype=object)
    kept = {
        "all": np.full(len(rows), True),
        "right": right,
        "wrong": ~right & (truth != None),  # noqa: E711 - of each
        "undecided": np.array([bool(names) for names in rows["undecided"].to_pylist()]),
    }[wanted]
    return rows.filter(kept if true_class == "any" else kept & (truth == true_class))


def _source(folder: Path, data: str | None) -> tuple[LabelledSource | None, str]:
    """Return the images of a run; or None and the reason if they cannot be found."""
    spec = read_spec(folder)
    try:
        source = open_run_source(spec, data)
        check_source(source, spec, folder)
    except InputError as e:
        return None, str(e)
    return source, ""


def _picture(source: LabelledSource, row: ResultRow) -> tuple[Any, str]:
    label = f"{row.prediction or 'undecided'} {row.score:.0%}"
    label += f", not {row.truth}" if row.truth not in (None, row.prediction) else ""
    try:
        image = load_image(source.read(source.ids.index(row.id))).image
    except ImageError as e:
        return Image.new("RGB", (28, 28)), f"{label}: cannot be read: {e}"
    image.thumbnail((256, 256))
    return image, label


def _compared(folder: Path, spec: RunSpec, before: pa.Table, after: pa.Table) -> str:
    change = compare_rows("run", "rescored", (before, after))
    changed = round(change.disagreement.value * change.num_images)
    if change.difference is None:
        return f"{changed} of {change.num_images} predictions changed."
    old, new = (summary_of(folder, spec, rows) for rows in (before, after))
    assert old.accuracy is not None
    assert new.accuracy is not None
    return (
        f"Accuracy {old.accuracy.value:.1%} → **{new.accuracy.value:.1%}**: {change.difference.points()}; "
        f"expected calibration error (ECE) {old.calibration_error:.3f} → "
        f"{new.calibration_error:.3f}; {changed:,} of {len(before):,} predictions changed. Weights that are chosen on "
        "these images overfit them: `calibrate` fits weights with cross-validation."
    )
