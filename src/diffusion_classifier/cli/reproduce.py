"""`reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .options import Device, Dtype, app, say, stderr, stdout


@app.command()
def reproduce(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for runs, figures and report.html, in whole/ or quick/.")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Use fewer images: minutes instead of an hour.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Test the paper's claims on the bundled models, and write a report with each number beside the paper's.

    Run the command again to resume. Needs the extras 'figures' and 'inversion'.

    Example: `diffusion-classifier reproduce --quick --out miniature/`
    """
    from ..analysis.paper.claims import verdict
    from ..analysis.paper.reproduce import expected_seconds
    from ..analysis.paper.reproduce import reproduce as run

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr) as progress:
        task = progress.add_task("starting", total=expected_seconds(quick))
        sections = run(
            out, quick=quick, progress=lambda name, seconds: progress.update(task, description=name, advance=seconds),
            device=device, dtype=dtype,
        )  # fmt: skip
    for section in sections:
        stdout.print(section.title, style="bold", markup=False, highlight=False)
        for claim in section.claims:
            stdout.print(f"  {verdict(claim)}: {claim.text} Here: {claim.here}", markup=False, highlight=False)
    say(f"written to {out / ('quick' if quick else 'whole') / 'report.html'}")
