"""The third tab: the images of a run, its mistakes, and its answers under other weights over time."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pyarrow as pa
from PIL import Image

from ..data.images import ImageError, load_image
from ..data.labelled import LabelledSource
from ..errors import InputError
from ..runs.rescore import rescored, with_settings
from ..runs.row import SCHEMA, SUMMARY_COLUMNS, ResultRow, table_to_rows
from ..runs.source import check_source, open_run_source
from ..runs.spec import RunSpec, check_class_run, read_spec, spec_with_errors
from ..runs.store import read_rows, with_status
from ..runs.summary import compare_rows, summary_of
from .html_parts import bars
from .inputs import sentences

A_PAGE = 24
KNOTS = 5
"""Times whose weight can be set."""
FILTERS = ("all", "wrong", "right", "undecided")


def build(page_itself: gr.Blocks, folders: list[Path], data: str | None) -> None:
    """Add the tab's components, and what they do.

    Args:
        page_itself: that the tab is on.
        folders: of the runs that may be looked at.
        data: where their images are; where they were if None.

    Raises:
        InputError: a folder holds no run, or one of captions.
    """
    if not folders:
        gr.Markdown(
            "No run was named. Make one with `diffusion-classifier evaluate fashion-sample --store-errors --out run/`, "
            "and start this page with `--run run/`."
        )
        return
    names = [str(folder) for folder in folders]
    for folder in folders:
        check_class_run(folder, read_spec(folder), "this page")
    sources = {folder: _source(folder, data) for folder in folders}
    weights_now, rows_shown = gr.State(None), gr.State([])
    with gr.Row():
        run = gr.Dropdown(names, value=names[0], label="Run", scale=3)
        kind = gr.Radio(FILTERS, value="wrong", label="Images", scale=3)
        truth = gr.Dropdown(["any"], value="any", label="True class", scale=2)
        page = gr.Number(1, minimum=1, precision=0, label="Page", scale=1)
    about = gr.HTML(elem_id="run")
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(
                label="Images",
                columns=4,
                height="auto",
                allow_preview=False,
                object_fit="contain",
                format="png",
                elem_classes="dc-photo",
            )
        with gr.Column(scale=2, min_width=300):
            details = gr.HTML(elem_id="details", container=True)
    with gr.Accordion("Answer again with other weights over time", open=False):
        gr.Markdown("From the stored errors, without the network. Weights count from no noise, left, to pure noise.")
        with gr.Row():
            knots = [
                gr.Slider(0, 4, 1, step=0.05, label=f"t/T = {i / (KNOTS - 1):g}", min_width=120) for i in range(KNOTS)
            ]
        temperature = gr.Slider(-2, 3, 0, step=0.05, label="Temperature, as a power of ten times the run's own")
        with gr.Row():
            again = gr.Button("Answer again", variant="primary")
            own = gr.Button("As the run was read")
        compared = gr.Markdown(elem_id="compared")

    asked = [run, kind, truth, page, weights_now]
    out = [about, gallery, rows_shown, truth, page]

    def show(path: Path, spec: RunSpec, rows: pa.Table, wanted: str, true_class: str, number: int) -> tuple[Any, ...]:
        told = _filtered(rows, spec, wanted, true_class)
        last = max(1, -(-len(told) // A_PAGE))
        number = min(max(int(number or 1), 1), last)
        on_page = told.slice((number - 1) * A_PAGE, A_PAGE)
        chosen = table_to_rows(on_page.select(["id", "truth", "prediction", "posterior", "num_evaluations"]))
        source, why_none = sources[path]
        pictures = [_picture(source, row) for row in chosen] if source else []
        line = f"{len(told):,} of {len(rows):,} images; page {number} of {last}"
        line += f". Their pictures are not found: {html.escape(why_none)}" if source is None else ""
        choices = gr.Dropdown(choices=["any", *spec.class_names], value=true_class)
        return line, pictures, [(row, spec.class_names) for row in chosen], choices, number

    def look(folder: str, wanted: str, true_class: str, number: int, settings: Any) -> tuple[Any, ...]:
        with sentences():
            path = _allowed(folder, folders)
            spec, rows = _answers(path, with_errors=settings is not None)
            if settings is not None:
                spec, rows = _again(path, spec, rows, settings)
            return show(path, spec, rows, wanted, true_class, number)

    def look_anew(folder: str, wanted: str, true_class: str, _page: int, settings: Any) -> tuple[Any, ...]:
        return look(folder, wanted, true_class, 1, settings)

    def as_read(folder: str, wanted: str, true_class: str, number: int) -> tuple[Any, ...]:
        return *look(folder, wanted, true_class, number, None), "", None

    def details_of(rows: list[Any], event: gr.SelectData) -> str:
        row, names = rows[event.index]
        facts = f"<p>{html.escape(row.id)}<br>truth: {html.escape(row.truth or 'not known')}<br>"
        facts += f"{row.num_evaluations:,} network predictions</p>"
        return bars(dict(zip(names, row.posterior, strict=True)), title=row.prediction or "undecided") + facts

    def refit(folder: str, wanted: str, true_class: str, number: int, power: float, *values: float) -> tuple[Any, ...]:
        with sentences():
            path, settings = _allowed(folder, folders), (tuple(values), 10**power)
            spec, before = _answers(path, with_errors=True)
            now, after = _again(path, spec, before, settings)
            return *show(path, now, after, wanted, true_class, number), _compared(path, now, before, after), settings

    browse: dict[str, Any] = {"api_visibility": "private"}
    kind.input(look_anew, asked, out, **browse)
    truth.input(look_anew, asked, out, **browse)
    all_out = [*out, compared, weights_now]
    run.input(lambda folder, wanted: as_read(folder, wanted, "any", 1), [run, kind], all_out, **browse)
    page.submit(look, asked, out, **browse)
    gallery.select(details_of, rows_shown, details, **browse)
    again.click(refit, [run, kind, truth, page, temperature, *knots], all_out, **browse)
    own.click(as_read, [run, kind, truth, page], all_out, **browse)
    page_itself.load(look, asked, out, **browse)


def _allowed(folder: str, folders: list[Path]) -> Path:
    """One of the folders that the page was started with, whatever a client sends.

    Raises:
        InputError: it is another.
    """
    for path in folders:
        if str(path) == folder:
            return path
    raise InputError(f"{folder!r} is none of the runs that this page was started with")


def _answers(folder: Path, with_errors: bool) -> tuple[RunSpec, pa.Table]:
    """Rows of a run over classes that are done, with the errors, which may be large, or without.

    Raises:
        InputError: nothing done.
    """
    columns = SCHEMA.names if with_errors else SUMMARY_COLUMNS
    spec, done = read_spec(folder), with_status(read_rows(folder, columns), "done")
    if not len(done):
        raise InputError(f"no image of {folder} is done yet")
    return spec, done


def _again(
    folder: Path, spec: RunSpec, rows: pa.Table, settings: tuple[tuple[float, ...], float]
) -> tuple[RunSpec, pa.Table]:
    """The same with other weights over time, and another temperature, as a multiple of the run's own.

    Raises:
        InputError: a run without errors, or weights that leave nothing to count.
    """
    weights, factor = settings
    spec_with_errors(folder)  # for its complaint
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
    """The images of a run, if they are where they were; else why not."""
    spec = read_spec(folder)
    try:
        source = open_run_source(spec, data)
        check_source(source, spec, folder)
    except InputError as e:
        return None, str(e)
    return source, ""


def _picture(source: LabelledSource, row: ResultRow) -> tuple[Any, str]:
    told = f"{row.prediction or 'undecided'} {row.score:.0%}"
    told += f", not {row.truth}" if row.truth not in (None, row.prediction) else ""
    try:
        image = load_image(source.read(source.ids.index(row.id))).image
    except ImageError as e:
        return Image.new("RGB", (28, 28)), f"{told}: cannot be read: {e}"
    image.thumbnail((256, 256))
    return image, told


def _compared(folder: Path, spec: RunSpec, before: pa.Table, after: pa.Table) -> str:
    change = compare_rows("as it was read", "answered again", (before, after))
    changed = round(change.disagreement.value * change.num_images)
    if change.difference is None:
        return f"Answers that changed: {changed} of {change.num_images}."
    old, new = (summary_of(folder, spec, rows) for rows in (before, after))
    assert old.accuracy is not None
    assert new.accuracy is not None
    return (
        f"Accuracy {old.accuracy.value:.1%} → **{new.accuracy.value:.1%}**: {change.difference.points()}; "
        f"calibration error {old.calibration_error:.3f} → "
        f"{new.calibration_error:.3f}; {changed:,} of {len(before):,} answers are others. Weights that were chosen by "
        "looking at these very images flatter them: `calibrate` fits them with cross-validation."
    )
