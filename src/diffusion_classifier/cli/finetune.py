"""`finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..exceptions import InputError
from .common import Device, Dtype, ImageSize, app, say
from .training import (
    CheckpointEvery,
    Ema,
    ImageColumn,
    LabelColumn,
    LearningRate,
    Split,
    StepSize,
    Warmup,
    WeightDecay,
    reporter,
)


@app.command()
def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="Images with captions, or folder with one sub-folder of images per class, as `train` takes them; with "
            "--false-column a file of captions."
        ),
    ],
    model: Annotated[str, typer.Option(help="Text-to-image model: bundled, folder, or hub id.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the LoRA weights. Started again, training goes on from its checkpoint.")
    ],
    template: Annotated[str, typer.Option(help="Caption of an image of a class, with {} for its name.")] = "a {}",
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    caption_column: Annotated[str | None, typer.Option(help="Column of the captions.")] = None,
    false_column: Annotated[
        list[str] | None,
        typer.Option(help="Column of false captions, from which the true one is told with --joint. Repeatable."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Of the LoRA matrices.")] = 8,
    joint: Annotated[
        float, typer.Option(help="Weight of the cross-entropy of the classifier beside the denoising error.")
    ] = 0.0,
    rivals: Annotated[
        int, typer.Option(help="False captions that the true one is told from in a step; all there are if 0.")
    ] = 3,
    epochs: Annotated[float, typer.Option(help="Passes over the images.")] = 10.0,
    batch_size: StepSize = 8,
    learning_rate: LearningRate = 1e-3,
    warmup: Warmup = 20,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = 0.99,
    seed: Annotated[int, typer.Option(help="Of weights, data order and noise.")] = 0,
    image_size: ImageSize = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    checkpoint_every: CheckpointEvery = 1000,
) -> None:
    """Fine-tune a text-to-image model on captioned images by LoRA, to denoise or also (--joint) to tell captions apart.

    The weights are for `--lora` of every other command, and for diffusers' `load_lora_weights`.

    Examples:
    `diffusion-classifier finetune cats/ --model scenes --out lora/ --joint 0.3`

    `diffusion-classifier finetune captions.parquet --false-column false_captions --model scenes
    --out lora/ --joint 0.3`
    """
    from ..caption_sources import open_captions
    from ..denoisers import load_denoiser
    from ..denoisers.text import TextConditional
    from ..prompts import fill_template
    from ..sources import is_captioned
    from ..training.data import (
        CaptionedImages,
        load_captioned_images,
        load_contrasted_images,
        load_labelled_images,
    )
    from ..training.denoising import TrainConfig
    from ..training.finetune import finetune as finetune_lora

    config = TrainConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay,
        ema=ema, label_dropout=0.0, joint=joint, rivals=rivals, seed=seed,
    )  # fmt: skip
    if false_column and not joint:
        raise InputError(
            "--false-column is for --joint, by which the true caption is told from false ones: give a weight"
        )
    denoiser = load_denoiser(model, device=device, dtype=dtype, image_size=image_size)
    if not isinstance(denoiser, TextConditional):
        raise InputError(f"{model} reads no text, and captions are what is fine-tuned on")
    size = denoiser.image_size
    if false_column:
        source = open_captions(
            data=data, split=split, image_column=image_column, caption_column=caption_column, false_column=false_column
        )
        images = load_contrasted_images(source, size)
    elif caption_column is not None or (label_column is None and is_captioned(data, split)):
        images = load_captioned_images(
            data, split=split, size=size, image_column=image_column, caption_column=caption_column
        )
    else:
        labelled = load_labelled_images(
            data, split=split, size=size, image_column=image_column, label_column=label_column
        )
        captions = fill_template(template, labelled.class_names)
        images = CaptionedImages(labelled.images, tuple(captions[i] for i in labelled.labels.tolist()))
    say(f"{len(images)} images with {len(set(images.captions))} different captions")
    with reporter() as report:
        finetune_lora(
            images, denoiser, config, out, rank=rank, checkpoint_every=checkpoint_every, on_step=report.on_step,
            on_stage=report.on_stage,
        )  # fmt: skip
    say(f"saved to {out}")
