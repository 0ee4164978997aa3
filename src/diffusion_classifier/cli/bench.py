"""`bench` and `models`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .options import BatchSize, Compile, Device, Dtype, ImageSize, Model, Variant, Without, app, load_classifier, stdout
from .summaries import print_bench


@app.command()
def bench(
    model: Model = "fashion",
    strategy: Annotated[
        list[str] | None, typer.Option(help="To tell the cost of; may be repeated. The model's and the authors' else.")
    ] = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile_network: Compile = False,
    image_size: ImageSize = None,
    without: Without = None,
    variant: Variant = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Measure how fast a model runs on this machine, and tell what an image will cost.

    Example: `diffusion-classifier bench --model fashion`
    """
    from ..analysis.speed import bench as measure

    classifier = load_classifier(
        model, device, dtype, batch_size, compile_network, image_size=image_size, without=without, variant=variant
    )
    print_bench(measure(classifier, model, strategy or ()), as_json)


@app.command()
def models() -> None:
    """List the bundled models, and hub ids of the families that can be loaded.

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
    stdout.print(f"Any folder or hub id of these pipelines loads: {', '.join(PIPELINES)}.", highlight=False)
    stdout.print("Those of DDPM and DDIM need a network with class embeddings.", highlight=False)
