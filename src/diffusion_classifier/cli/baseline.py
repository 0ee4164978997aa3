"""`baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.prompts import split_labels
from ..errors import InputError
from .options import (
    AllowIncomplete,
    ClassNames,
    Device,
    Dtype,
    ImageColumn,
    ImageSize,
    LabelColumn,
    app,
    progress_bar,
    say,
    say_all,
    stderr,
)
from .training_options import (
    Architecture,
    Augment,
    CheckpointEvery,
    Ema,
    Epochs,
    HeldOut,
    LabelledData,
    LearningRate,
    ModelOut,
    Optimizer,
    Size,
    Split,
    StepSize,
    Warmup,
    WeightDecay,
    load_and_hold_out,
    reporter,
)

baseline = typer.Typer(help="What else could one do: models to compare with.", no_args_is_help=True)
app.add_typer(baseline, name="baseline")


@baseline.command()
def supervised(
    data: LabelledData,
    out: ModelOut,
    architecture: Architecture = "resnet-18",
    augment: Augment = "usual",
    size: Size = None,
    class_names: ClassNames = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    allow_incomplete: AllowIncomplete = False,
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
    """Train an image classifier from scratch; transformers loads it, and `evaluate TASK --model OUT` reads it.

    Example: `diffusion-classifier baseline supervised photos/ --size 32 --out resnet/ --epochs 20`
    """
    from ..denoisers.devices import resolve_device
    from ..training.loop import num_steps
    from ..training.supervised import SupervisedConfig, train_supervised

    config = SupervisedConfig(
        architecture=architecture, augment=augment, epochs=epochs, batch_size=batch_size, optimizer=optimizer,
        learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, ema=ema, seed=seed,
    )  # fmt: skip
    training, held_out = load_and_hold_out(
        data, validation, seed, split=split, size=size, class_names=class_names, image_column=image_column,
        label_column=label_column, allow_incomplete=allow_incomplete,
    )  # fmt: skip
    with reporter() as report:
        report.on_stage("training", num_steps(config, len(training)), batch_size)
        train_supervised(
            training, config, out, validation=held_out, device=str(resolve_device(device)),
            checkpoint_every=checkpoint_every, on_step=report.on_step, on_validation=report.on_validation,
        )  # fmt: skip
    say(f"saved to {out}")


@baseline.command()
def features(
    data: LabelledData,
    model: Annotated[str, typer.Option(help="Diffusion model whose features are read: bundled, folder, or hub id.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the head. Started again, training goes on from its checkpoint.")
    ],
    head: Annotated[
        str, typer.Option(help="linear, or conv: two residual blocks before it, as in the paper.")
    ] = "conv",
    augment: Augment = "usual",
    class_names: ClassNames = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    allow_incomplete: AllowIncomplete = False,
    validation: HeldOut = None,
    epochs: Epochs = None,
    batch_size: StepSize = 16,
    optimizer: Optimizer = "adamw",
    learning_rate: LearningRate = 1e-4,
    warmup: Warmup = 200,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = 0.999,
    seed: Annotated[int, typer.Option(help="Of weights, data order, augmentation, noise and held-out images.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    checkpoint_every: CheckpointEvery = None,
) -> None:
    """Train a classifier on what the middle of a diffusion model makes of labelled images (the paper's SD features).

    `evaluate TASK --model OUT` reads it.

    Example: `diffusion-classifier baseline features photos/ --model fashion --out head/`
    """
    from ..denoisers import load_denoiser
    from ..training.loop import num_steps
    from ..training.supervised import SupervisedConfig, train_features

    config = SupervisedConfig(
        architecture=head, augment=augment, epochs=epochs, batch_size=batch_size, optimizer=optimizer,
        learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, ema=ema, seed=seed,
    )  # fmt: skip
    denoiser = load_denoiser(model, device=device, dtype=dtype)
    training, held_out = load_and_hold_out(
        data, validation, seed, split=split, size=denoiser.image_size, class_names=class_names,
        image_column=image_column, label_column=label_column, crop=denoiser.crop,
        allow_incomplete=allow_incomplete,
    )  # fmt: skip
    with reporter() as report:
        report.on_stage("training", num_steps(config, len(training)), batch_size)
        train_features(
            training, denoiser, model, config, out, validation=held_out, checkpoint_every=checkpoint_every,
            on_step=report.on_step, on_validation=report.on_validation,
        )  # fmt: skip
    say(f"saved to {out}")


@baseline.command()
def gaussian(
    data: Annotated[
        str, typer.Argument(help="Images of known classes, such as `baseline synthetic` draws: as for `evaluate`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for what is fitted.")],
    model: Annotated[
        str | None, typer.Option(help="Diffusion model whose middle is read: bundled, folder, or hub id.")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="Or an image encoder or classifier of transformers: CLIP, DINOv2 … Folder or hub id."),
    ] = None,
    class_names: ClassNames = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    allow_incomplete: AllowIncomplete = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Fit a Gaussian to each class in the space of features: the nearest mean by Mahalanobis distance wins.

    `evaluate TASK --model OUT` reads it. Needs the extra 'gaussian'.

    Example: `diffusion-classifier baseline gaussian drawn/ --encoder openai/clip-vit-base-patch32 --out gaussian/`
    """
    from ..baselines.encoders import load_encoder
    from ..baselines.gaussian import save_gaussians
    from ..data.labelled import open_labelled
    from ..data.prompts import parse_labels

    if (model is None) == (encoder is None):
        raise InputError("say what makes features of the images: --model, a diffusion model, or --encoder")
    names = split_labels(class_names) if class_names is not None else None
    source = open_labelled(
        data, split=split, image_column=image_column, label_column=label_column, class_names=names,
        allow_incomplete=allow_incomplete,
    )  # fmt: skip
    parse_labels(source.class_names)  # as `evaluate` does, before anything takes long
    kind = "hub" if model is None else "diffusion"
    say_all(source.notes)
    loaded = load_encoder(name := str(model or encoder), kind, device=device, dtype=dtype)
    with progress_bar(disable=not stderr.is_terminal) as bar:
        task = bar.add_task("encoding", total=len(source))
        save_gaussians(loaded, name, source, out, lambda done: bar.update(task, completed=done))
    say(f"fitted to {len(source)} images of {len(source.class_names)} classes and saved to {out}")


@baseline.command()
def synthetic(
    model: Annotated[str, typer.Option(help="Model that draws: bundled, folder, or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for images and metadata.csv. Started again, drawing goes on.")],
    labels: Annotated[
        str | None, typer.Option(help="Comma-separated; all classes of a model that knows some if not given.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 100,
    template: Annotated[
        list[str] | None,
        typer.Option(help="Prompt for a model that reads text, with {} for the class; drawn at random. Repeatable."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Of sampling.")] = 50,
    guidance: Annotated[
        float | None, typer.Option(help="By the null condition; the default of the family's pipeline if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise and templates.")] = 0,
    image_size: ImageSize = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw images of classes, for another classifier to be trained on: `baseline supervised OUT`.

    Example:
    `diffusion-classifier baseline synthetic --model scenes --labels 'bag,dress' --template 'a {}' --out drawn/`
    """
    from ..data.prompts import distinct_names, parse_labels
    from ..denoisers import load_denoiser
    from ..training.synthetic import SyntheticConfig, draw_data_set

    denoiser = load_denoiser(model, device=device, dtype=dtype, image_size=image_size)
    known = denoiser.class_names
    if known is not None and template:
        raise InputError(f"{model} knows classes and reads no --template")
    if labels is None and known is None:
        raise InputError(f"{model} draws any text: say what, --labels")
    classes = tuple(distinct_names(known or ()) if labels is None else parse_labels(labels))
    templates = () if known is not None else tuple(template or ("a photo of a {}.",))
    recipe = SyntheticConfig(classes, per_class, templates, steps, guidance, seed)
    with progress_bar(disable=not stderr.is_terminal) as bar:
        there = len(list(out.glob("*.png")))
        task = bar.add_task("drawing", total=len(recipe), completed=there)
        drawn = 0
        for _ in draw_data_set(denoiser, recipe, out):
            drawn += 1
            bar.update(task, completed=there + drawn)
    say(f"{drawn} images drawn, {len(recipe)} in {out}")
