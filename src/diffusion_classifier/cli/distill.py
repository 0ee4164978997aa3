"""`distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, ImageColumn, LabelColumn, app, say
from .training_options import (
    Architecture,
    Augment,
    CheckpointEvery,
    Ema,
    Epochs,
    HeldOut,
    LearningRate,
    ModelOut,
    Optimizer,
    Size,
    StepSize,
    Warmup,
    WeightDecay,
    hold_out,
    reporter,
)


@app.command()
def distill(
    runs: Annotated[list[Path], typer.Argument(help="Runs of the teachers; their answers are averaged.")],
    out: ModelOut,
    images: Annotated[
        str | None, typer.Option(help="Where the images are, if not where they were when the runs were made.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of these.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    architecture: Architecture = "resnet-18",
    augment: Augment = "usual",
    size: Size = None,
    validation: HeldOut = None,
    epochs: Epochs = None,
    batch_size: StepSize = 64,
    optimizer: Optimizer = "muon",
    learning_rate: LearningRate = 2e-3,
    warmup: Warmup = 200,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = 0.999,
    seed: Annotated[int, typer.Option(help="Of weights, data order, augmentation and held-out images.")] = 0,
    device: Device = "auto",
    checkpoint_every: CheckpointEvery = None,
) -> None:
    """Train an image classifier that answers in one pass what runs answered, from their posteriors; no label is read.

    Images need none: `evaluate photos/ --class-names cat,dog --out runs/photos` runs on a folder of any. The student is
    an ordinary folder of transformers, with a card.

    Example: `diffusion-classifier distill runs/photos --out student/ --epochs 20`
    """
    from ..denoisers.devices import resolve_device
    from ..runs.source import open_run_source
    from ..runs.spec import read_spec
    from ..training.distill import teaching_images, write_card
    from ..training.loop import num_steps
    from ..training.supervised import SupervisedConfig, train_supervised

    config = SupervisedConfig(
        architecture=architecture, augment=augment, epochs=epochs, batch_size=batch_size, optimizer=optimizer,
        learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, ema=ema, seed=seed,
    )  # fmt: skip
    specs = [read_spec(run) for run in runs]
    sources = [
        open_run_source(spec, images, split=split, image_column=image_column, label_column=label_column)
        for spec in specs
    ]
    training, held_out = hold_out(teaching_images(dict(zip(runs, sources, strict=True)), size), validation, seed)
    agreement: list[float] = []
    with reporter() as report:

        def on_validation(step: int, values: dict[str, float]) -> None:
            agreement[:] = values.values()
            report.on_validation(step, values)

        report.on_stage("training", num_steps(config, len(training)), batch_size)
        train_supervised(
            training, config, out, validation=held_out, device=str(resolve_device(device)),
            checkpoint_every=checkpoint_every, on_step=report.on_step, on_validation=on_validation,
        )  # fmt: skip
    if agreement or not (out / "README.md").exists():  # the first is not known where the student was finished before
        write_card(out, config, specs, training, agreement[0] if agreement else None)
    say(f"saved to {out}")
