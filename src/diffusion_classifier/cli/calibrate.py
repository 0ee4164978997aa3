"""`calibrate` and `frontier`, which read stored error tables and need no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

from .options import app, say, stderr
from .summaries import print_calibration, print_frontier


@app.command()
def calibrate(
    tables: Annotated[
        Path, typer.Argument(help="Error tables of `classify --save-errors`, or folder of a run with errors.")
    ],
    out: Annotated[Path, typer.Option(help="JSON file for `classify --calibration`.")],
    draws: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of draws per image. Default: all draws in the tables.")
    ] = None,
    error_rate: Annotated[
        float,
        typer.Option(help="Accepted share of images for which the prediction of exhaustive search is dropped."),
    ] = 0.01,
    figure: Annotated[
        Path | None, typer.Option(help="Figure of the weights and the calibration; needs the extra 'figures'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Fit the sequential strategy and, if true labels are known, timestep weights and the temperature.

    Works on stored error tables, without the network. Weights are used only if they improve the accuracy significantly.

    Examples:
    `diffusion-classifier classify held-out/ --draws 64 --save-errors tables.parquet`

    `diffusion-classifier calibrate tables.parquet --out calibration.json`

    `diffusion-classifier classify photos/ --calibration calibration.json`
    """
    from ..analysis.calibration import calibrate as fit
    from ..analysis.calibration import save_calibration
    from ..analysis.calibration_figure import draw_calibration
    from ..runs.error_tables import read_tables

    calibration = fit(read_tables(tables), max_draws=draws, error_rate=error_rate)
    save_calibration(calibration.defaults, out)
    print_calibration(calibration, as_json)
    say(f"saved to {out}")
    if figure is not None:
        draw_calibration(calibration, figure)
        say(f"drawn to {figure}")


@app.command()
def frontier(
    tables: Annotated[Path, typer.Argument(help="Full error tables of `classify --save-errors`, or folder of a run.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Timestep weights: uniform, or a JSON file. Default: those of the tables."),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Figure to draw; needs the extra 'figures'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Compute accuracy against evaluations per image of every strategy, from stored error tables.

    Example: `diffusion-classifier frontier tables.parquet --figure frontier.png`
    """
    from ..analysis.frontier import draw_frontier
    from ..analysis.frontier import measure_frontier as find
    from ..runs.error_tables import read_tables

    read = read_tables(tables)
    points = list(track(find(read, weights), description="strategies", console=stderr, transient=True))
    print_frontier(points, as_json)
    if figure is not None:
        ylabel = "agreement with exhaustive search" if None in read.truth else "accuracy"
        draw_frontier(points, f"{len(read.images)} images, {len(read.class_names)} classes", ylabel, figure)
        say(f"drawn to {figure}")
