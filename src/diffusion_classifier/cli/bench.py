"""`bench` and `models`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .groups import takes_groups
from .options import ModelOptions, app, stdout
from .summaries import print_bench


@app.command()
@takes_groups
def bench(
    strategy: Annotated[
        list[str] | None,
        typer.Option(help="Strategy to predict the cost of. Repeatable. Default: the model's own and the paper's."),
    ] = None,
    model: ModelOptions = ModelOptions(),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure how fast a model runs on this machine, and predict the seconds per image.

    Example: `diffusion-classifier bench --model fashion`
    """
    from ..analysis.speed import bench as measure

    print_bench(measure(model.load_classifier(), model.model, strategy or ()), as_json)


@app.command()
def models() -> None:
    """List the bundled models, and hub ids of the supported families.

    Example: `diffusion-classifier models`
    """
    from ..denoisers.families.registry import PIPELINES
    from ..denoisers.known_models import KNOWN, describe_bundled

    table = Table("model", "family", "classes", "licence of the weights")
    for column in table.columns:
        column.overflow = "fold"
    for row in (*describe_bundled(), *KNOWN):
        table.add_row(*map(Text, row))
    stdout.print(table)
    stdout.print(f"Any folder or hub id of these pipelines can be loaded: {', '.join(PIPELINES)}.", highlight=False)
    stdout.print("Pipelines of DDPM and DDIM need a network with class embeddings.", highlight=False)
