"""`calibrate` and `frontier`: stored error tables, no network."""

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
        Path, typer.Argument(help="Error tables of `classify --save-errors`, or folder of a run that kept errors.")
    ],
    out: Annotated[Path, typer.Option(help="JSON file for `classify --calibration`.")],
    draws: Annotated[
        int | None, typer.Option(min=1, help="Most draws of an image; as in the tables if not given.")
    ] = None,
    error_rate: Annotated[
        float, typer.Option(help="Accepted share of images on which the class that all draws would choose is dropped.")
    ] = 0.01,
    figure: Annotated[
        Path | None, typer.Option(help="Picture of weights and calibration to draw; needs the extra 'figures'.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Fit the sequential strategy and, where true labels are known, weights over time and the temperature of scores.

    On stored error tables, without the network. Weights are taken over only where they show a gain in accuracy.

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
        str | None, typer.Option(help="Over time: JSON file of numbers, or uniform; those of the tables if not given.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture to draw; needs the extra 'figures'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """Show accuracy against evaluations of every strategy, from stored error tables, without the network.

    Example: `diffusion-classifier frontier tables.parquet --figure frontier.png`
    """
    from ..analysis.frontier import draw_frontier
    from ..analysis.frontier import frontier as find
    from ..runs.error_tables import read_tables

    read = read_tables(tables)
    points = list(track(find(read, weights), description="strategies", console=stderr, transient=True))
    print_frontier(points, as_json)
    if figure is not None:
        ylabel = "agreement with all draws" if None in read.truth else "accuracy"
        draw_frontier(points, f"{len(read.images)} images, {len(read.class_names)} classes", ylabel, figure)
        say(f"drawn to {figure}")
