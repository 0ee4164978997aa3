"""`train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .options import (
    AllowIncomplete,
    ClassNames,
    Compile,
    Device,
    ImageColumn,
    LabelColumn,
    app,
    refuse_unused,
    say,
    say_all,
)
from .training_options import (
    CheckpointEvery,
    Ema,
    Epochs,
    LabelledData,
    LearningRate,
    ModelOut,
    Size,
    Split,
    StepSize,
    Warmup,
    WeightDecay,
    load_and_hold_out,
    reporter,
)


@app.command()
def train(
    context: typer.Context,
    data: LabelledData,
    out: ModelOut,
    size: Size = None,
    class_names: ClassNames = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    allow_incomplete: AllowIncomplete = False,
    caption_column: Annotated[
        str | None,
        typer.Option(help="Column of the captions, for a text-to-image model; text or caption if not given."),
    ] = None,
    validation: Annotated[
        int | None,
        typer.Option(min=0, help="Images held out; 200 at most are reported on. A tenth, at most 1000, if not given."),
    ] = None,
    objective: Annotated[str, typer.Option(help="epsilon, v_prediction, sample or flow.")] = "v_prediction",
    beta_schedule: Annotated[str, typer.Option(help="linear, scaled_linear or squaredcos_cap_v2.")] = "linear",
    times: Annotated[
        str,
        typer.Option(help="At which it trains: even, logit-normal for middle ones, or a file of weights as a density."),
    ] = "even",
    weighting: Annotated[
        str, typer.Option(help="Minimise the error of the network's 'output', or of the 'noise' that follows from it.")
    ] = "output",
    patch_size: Annotated[
        int, typer.Option(help="Fold p×p pixels into channels: fewer positions, same information.")
    ] = 1,
    channels: Annotated[str, typer.Option(help="Width of each resolution level, high to low.")] = "64,128",
    layers: Annotated[int, typer.Option(help="Residual blocks per level.")] = 2,
    attention: Annotated[
        bool, typer.Option(help="In all blocks of the lowest resolution, not the middle one alone.")
    ] = False,
    dropout: Annotated[float, typer.Option(help="In the residual blocks.")] = 0.0,
    head: Annotated[
        str | None,
        typer.Option(help="Width of each level of a head, which alone sees the class; the rest is a trunk for all."),
    ] = None,
    trunk: Annotated[str, typer.Option(help="Below a head: unet, or transformer of one width.")] = "unet",
    head_layers: Annotated[int, typer.Option(help="Residual blocks per level of the head.")] = 1,
    features: Annotated[int, typer.Option(help="Channels that the trunk hands to the head.")] = 64,
    epochs: Epochs = None,
    batch_size: StepSize = 32,
    optimizer: Annotated[
        str, typer.Option(help="adamw, or muon: dearer steps, fewer of them. Muon likes twice the learning rate.")
    ] = "adamw",
    learning_rate: LearningRate = 1e-3,
    warmup: Warmup = 500,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = 0.999,
    label_dropout: Annotated[float, typer.Option(help="Share of images shown without their class.")] = 0.1,
    joint: Annotated[
        float, typer.Option(help="Weight of the cross-entropy of the classifier beside the denoising error.")
    ] = 0.0,
    rivals: Annotated[int, typer.Option(help="Classes that the true one is told from in a step; all others if 0.")] = 0,
    flip: Annotated[bool, typer.Option(help="Mirror images at random.")] = False,
    contrastive: Annotated[
        str,
        typer.Option(
            help="With captions: settings of the contrastive model whose text encoder reads prompts, as "
            "width=128,layers=4,epochs=10, or the folder of one."
        ),
    ] = "",
    autoencoder: Annotated[
        str,
        typer.Option(help="With captions: settings, as channels=32/64/64,latent_channels=8,epochs=1, or a folder."),
    ] = "",
    start: Annotated[str, typer.Option(help="Model whose weights training starts from; fresh ones if not given.")] = "",
    seed: Annotated[int, typer.Option(help="Of weights, data order, noise and held-out images.")] = 0,
    device: Device = "auto",
    compile_network: Compile = False,
    checkpoint_every: CheckpointEvery = None,
) -> None:
    """Train a small diffusion model from scratch: class-conditional, in pixels; or, from captions, text-to-image.

    A folder with sub-folders holds classes; one with a metadata.csv of file_name and text holds captions, of which a
    Stable Diffusion pipeline is made, in three stages: a contrastive model, an autoencoder, the diffusion model.

    Examples:
    `diffusion-classifier train photos/ --out model/ --size 32`

    `diffusion-classifier train captioned/ --out model/ --contrastive layers=4,epochs=10 --epochs 4`
    """
    from ..data.texts import is_text_source
    from ..denoisers.devices import resolve_device
    from ..diffusion.timestep_weights import read_weights
    from ..training.class_model import train as train_classes
    from ..training.denoising import TrainConfig
    from ..training.images import load_captioned_images
    from ..training.loop import num_steps
    from ..training.text_model import train_text
    from ..training.text_networks import Latents, Towers, read_settings

    of_captions = caption_column is not None or (label_column is None and is_text_source(data, split, allow_incomplete))
    if not head:
        refuse_unused(context, ("trunk", "head_layers", "features"), "is for --head")
    if not joint:
        refuse_unused(context, ("rivals",), "is for --joint")
    if of_captions:
        refuse_unused(context, ("class_names", "label_column"), "is for classes, and the images have captions")
    else:
        refuse_unused(context, ("contrastive", "autoencoder"), "is for images with captions")
    config = TrainConfig(
        objective=objective, beta_schedule=beta_schedule,
        times=read_weights(times) if Path(times).is_file() else times, weighting=weighting,
        patch_size=patch_size, channels=_ints(channels, "--channels"),
        layers=layers, attention=attention, dropout=dropout,
        head=_ints(head, "--head") if head else (), trunk=trunk, head_layers=head_layers, features=features,
        joint=joint, rivals=rivals, epochs=epochs, batch_size=batch_size,
        optimizer=optimizer, learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, ema=ema,
        label_dropout=label_dropout, flip=flip, start=start, seed=seed,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "device": str(resolve_device(device)),
        "compile_network": compile_network,
        "checkpoint_every": checkpoint_every,
    }
    if of_captions:
        if validation is not None:
            raise InputError("--validation is for models of classes: of captions all images are trained on")
        towers: Towers | Path = (
            Path(contrastive) if contrastive and Path(contrastive).exists() else read_settings(Towers, contrastive)
        )
        latents: Latents | Path = (
            Path(autoencoder) if autoencoder and Path(autoencoder).exists() else read_settings(Latents, autoencoder)
        )
        captioned = load_captioned_images(
            data, split=split, size=size, image_column=image_column, caption_column=caption_column,
            allow_incomplete=allow_incomplete,
        )  # fmt: skip
        say_all(captioned.notes)
        say(f"{len(captioned)} images with {len(set(captioned.captions))} different captions")
        with reporter() as report:
            train_text(
                captioned, config, out, towers=towers, latents=latents, on_step=report.on_step,
                on_stage=report.on_stage, **settings,
            )  # fmt: skip
    else:
        training, held_out = load_and_hold_out(
            data, validation, seed, split=split, size=size, class_names=class_names, image_column=image_column,
            label_column=label_column, allow_incomplete=allow_incomplete,
        )  # fmt: skip
        with reporter() as report:
            report.on_stage("training", num_steps(config, len(training)), batch_size)
            train_classes(
                training, config, out, validation=held_out, on_step=report.on_step,
                on_validation=report.on_validation, **settings,
            )  # fmt: skip
    say(f"saved to {out}")


def _ints(text: str, option: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise InputError(f"{option} {text!r}: whole numbers separated by commas were expected") from e
