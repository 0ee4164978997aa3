"""`distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .groups import option, takes_groups
from .options import ColumnOptions, Device, app, say
from .training_options import (
    Architecture,
    Augment,
    HeldOut,
    ModelOut,
    Optimizer,
    Size,
    TrainingOptions,
    hold_out,
    reporter,
)


@app.command()
@takes_groups
def distill(
    runs: Annotated[list[Path], typer.Argument(help="Runs of the teachers, whose posteriors are averaged.")],
    out: ModelOut,
    images: Annotated[
        str | None, option("Data", "Folder, file or hub id of the images. Default: the one the runs evaluated.")
    ] = None,
    columns: ColumnOptions = ColumnOptions(),
    size: Size = None,
    validation: HeldOut = None,
    architecture: Architecture = "resnet-18",
    augment: Augment = "usual",
    optimizer: Optimizer = "muon",
    training: TrainingOptions = TrainingOptions(),
    device: Device = "auto",
) -> None:
    """Distill the posteriors of runs into an image classifier that needs one forward pass.

    No labels are used: `evaluate photos/ --class-names cat,dog --out runs/photos` evaluates a folder of unlabelled
    images. The student is a model of transformers, with a model card.

    Example: `diffusion-classifier distill runs/photos --out student/ --epochs 20`
    """
    from ..denoisers.devices import resolve_device
    from ..runs.source import open_run_source
    from ..runs.spec import read_spec
    from ..training.distill import teaching_images, write_card
    from ..training.loop import num_steps
    from ..training.supervised import SupervisedConfig, train_supervised

    config = SupervisedConfig(architecture=architecture, augment=augment, optimizer=optimizer, **training.config())
    specs = [read_spec(run) for run in runs]
    sources = [open_run_source(spec, images, **vars(columns)) for spec in specs]
    teaching = teaching_images(dict(zip(runs, sources, strict=True)), size)
    taught_images, held_out = hold_out(teaching, validation, training.seed)
    agreement: list[float] = []
    with reporter() as report:

        def on_validation(step: int, values: dict[str, float]) -> None:
            agreement[:] = values.values()
            report.on_validation(step, values)

        report.on_stage("training", num_steps(config, len(taught_images)), config.batch_size)
        train_supervised(
            taught_images, config, out, validation=held_out, device=str(resolve_device(device)),
            checkpoint_every=training.checkpoint_every, on_step=report.on_step, on_validation=on_validation,
        )  # fmt: skip
    if agreement or not (out / "README.md").exists():  # unknown if the student was finished before
        write_card(out, config, specs, taught_images, agreement[0] if agreement else None)
    say(f"saved to {out}")
