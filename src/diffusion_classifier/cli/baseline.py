"""`baseline`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import Device, Dtype, ImageSize, app, progress_bar, say, say_all, stderr
from .training_options import (
    Architecture,
    Augment,
    HeldOut,
    LabelledData,
    ModelOut,
    Optimizer,
    Size,
    TrainingDataOptions,
    TrainingOptions,
    load_and_hold_out,
    reporter,
)

baseline = typer.Typer(help="Train other classifiers to compare with, or generate data for them.", no_args_is_help=True)
app.add_typer(baseline, name="baseline")


@baseline.command()
@takes_groups
def supervised(
    data: LabelledData,
    out: ModelOut,
    columns: TrainingDataOptions = TrainingDataOptions(),
    size: Size = None,
    validation: HeldOut = None,
    architecture: Architecture = "resnet-18",
    augment: Augment = "usual",
    optimizer: Optimizer = "muon",
    training: TrainingOptions = TrainingOptions(),
    device: Device = "auto",
) -> None:
    """Train an image classifier from scratch; `evaluate TASK --model OUT` and transformers load it.

    Example: `diffusion-classifier baseline supervised photos/ --size 32 --out resnet/ --epochs 20`
    """
    from ..denoisers.devices import resolve_device
    from ..training.loop import num_steps
    from ..training.supervised import SupervisedConfig, train_supervised

    config = SupervisedConfig(architecture=architecture, augment=augment, optimizer=optimizer, **training.config())
    images, held_out = load_and_hold_out(data, columns, validation, training.seed, size=size)
    with reporter() as report:
        report.on_stage("training", num_steps(config, len(images)), config.batch_size)
        train_supervised(
            images, config, out, validation=held_out, device=str(resolve_device(device)),
            checkpoint_every=training.checkpoint_every, on_step=report.on_step, on_validation=report.on_validation,
        )  # fmt: skip
    say(f"saved to {out}")


@baseline.command()
@takes_groups
def features(
    data: LabelledData,
    model: Annotated[str, option("Model", "Diffusion model whose features are used: bundled name, folder or hub id.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the head. Run the command again to resume from its checkpoint.")
    ],
    columns: TrainingDataOptions = TrainingDataOptions(),
    validation: HeldOut = None,
    head: Annotated[
        Literal["linear", "conv"],
        option("Training", "Head on the features. conv: two residual blocks before a linear layer, as in the paper."),
    ] = "conv",
    augment: Augment = "usual",
    optimizer: Optimizer = "adamw",
    training: TrainingOptions = TrainingOptions(batch_size=16, learning_rate=1e-4),
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Train a classifier head on the features of a diffusion model's middle block (the paper's SD features).

    `evaluate TASK --model OUT` loads it.

    Example: `diffusion-classifier baseline features photos/ --model fashion --out head/`
    """
    from ..denoisers import load_denoiser
    from ..training.loop import num_steps
    from ..training.supervised import SupervisedConfig, train_features

    config = SupervisedConfig(architecture=head, augment=augment, optimizer=optimizer, **training.config())
    denoiser = load_denoiser(model, device=device, dtype=dtype)
    images, held_out = load_and_hold_out(
        data, columns, validation, training.seed, size=denoiser.image_size, crop=denoiser.crop
    )
    with reporter() as report:
        report.on_stage("training", num_steps(config, len(images)), config.batch_size)
        train_features(
            images, denoiser, model, config, out, validation=held_out, checkpoint_every=training.checkpoint_every,
            on_step=report.on_step, on_validation=report.on_validation,
        )  # fmt: skip
    say(f"saved to {out}")


@baseline.command()
@takes_groups
def gaussian(
    data: Annotated[
        str, typer.Argument(help="Labelled images, as for `evaluate`; for example from `baseline synthetic`.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the fitted Gaussians.")],
    model: Annotated[
        str | None,
        option("Model", "Diffusion model whose features are used: bundled name, folder or hub id. Or give --encoder."),
    ] = None,
    encoder: Annotated[
        str | None,
        option(
            "Model",
            "Image encoder or classifier of transformers, such as CLIP or DINOv2: folder or hub id. Or give --model.",
        ),
    ] = None,
    columns: TrainingDataOptions = TrainingDataOptions(),
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Fit one Gaussian per class in feature space, which predicts the class with the nearest mean.

    `evaluate TASK --model OUT` loads it. Needs the extra 'gaussian'.

    Example: `diffusion-classifier baseline gaussian drawn/ --encoder openai/clip-vit-base-patch32 --out gaussian/`
    """
    from ..baselines.encoders import load_encoder
    from ..baselines.gaussian import save_gaussians
    from ..data.labelled import open_labelled
    from ..data.prompts import parse_labels

    if (model is None) == (encoder is None):
        raise InputError("choose what computes the features: --model, a diffusion model, or --encoder")
    source = open_labelled(data, **columns.arguments())
    parse_labels(source.class_names)  # as in `evaluate`, before the slow part
    kind = "hub" if model is None else "diffusion"
    say_all(source.notes)
    loaded = load_encoder(name := str(model or encoder), kind, device=device, dtype=dtype)
    with progress_bar(disable=not stderr.is_terminal) as bar:
        task = bar.add_task("encoding", total=len(source))
        save_gaussians(loaded, name, source, out, lambda done: bar.update(task, completed=done))
    say(f"fitted to {len(source)} images of {len(source.class_names)} classes and saved to {out}")


@baseline.command()
def synthetic(
    model: Annotated[str, option("Model", "Diffusion model that generates: bundled name, folder or hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the images and metadata.csv. Run the command again to resume.")],
    labels: Annotated[
        str | None, typer.Option(help="Comma-separated labels. Default: all classes of a class-conditional model.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Images per class.")] = 100,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt for a text-to-image model, with {} for the label; one is chosen at random per image. "
            "Repeatable. Default: 'a photo of a {}.'."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 50,
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of classifier-free guidance. Default: the one of the family's pipeline."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise and the choice of prompts.")] = 0,
    image_size: ImageSize = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Generate labelled images to train another classifier on: `baseline supervised OUT`.

    Example:
    `diffusion-classifier baseline synthetic --model scenes --labels 'bag,dress' --template 'a {}' --out drawn/`
    """
    from ..data.prompts import distinct_names, parse_labels
    from ..denoisers import load_denoiser
    from ..training.synthetic import SyntheticConfig, draw_data_set

    denoiser = load_denoiser(model, device=device, dtype=dtype, image_size=image_size)
    known = denoiser.class_names
    if known is not None and template:
        raise InputError(f"{model} is class-conditional and takes no --template")
    if labels is None and known is None:
        raise InputError(f"{model} is a text-to-image model: say which images to generate by --labels")
    classes = tuple(distinct_names(known or ()) if labels is None else parse_labels(labels))
    templates = () if known is not None else tuple(template or ("a photo of a {}.",))
    recipe = SyntheticConfig(classes, per_class, templates, steps, guidance, seed)
    with progress_bar(disable=not stderr.is_terminal) as bar:
        there = len(list(out.glob("*.png")))
        task = bar.add_task("generating", total=len(recipe), completed=there)
        drawn = 0
        for _ in draw_data_set(denoiser, recipe, out):
            drawn += 1
            bar.update(task, completed=there + drawn)
    say(f"{drawn} images generated, {len(recipe)} in {out}")
