"""`finetune`."""

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
    TableFormat,
    app,
    check_format,
    is_given,
    refuse_unused,
    say,
    say_all,
)
from .summaries import print_gains
from .training_options import CheckpointEvery, Ema, LearningRate, Split, StepSize, Warmup, WeightDecay, reporter


@app.command()
def finetune(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="Images with captions, or folder with one sub-folder of images per class, as `train` takes them; with "
            "--false-column a file of captions."
        ),
    ],
    model: Annotated[str, typer.Option(help="Model: bundled, folder, or hub id.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the LoRA weights. Started again, training goes on from its checkpoint.")
    ],
    template: Annotated[
        str, typer.Option(help="Caption of an image of a class, with {} for its name, for a model that reads text.")
    ] = "a {}",
    classes: Annotated[
        str | None, typer.Option(help="Comma-separated: those that are confused. Only their images are trained on.")
    ] = None,
    number: Annotated[int | None, typer.Option(help="With --classes, so many of the images; all if not given.")] = None,
    held_out: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --classes, images of all classes held out, on which the model is evaluated before and after. A "
            "tenth, at most 1000, if not given.",
        ),
    ] = None,
    class_names: ClassNames = None,
    split: Split = "train",
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    allow_incomplete: AllowIncomplete = False,
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
    checkpoint_every: CheckpointEvery = None,
    output: TableFormat = "table",
) -> None:
    """Fine-tune a model by LoRA on images with captions or of classes, to denoise or also (--joint) to tell them apart.

    The weights are for `--lora` of every other command; those of a text-to-image model for diffusers, too.

    Examples:
    `diffusion-classifier finetune clothes/ --model fashion --classes 'Shirt,T-shirt/top' --number 175 --joint 0.02
    --out lora/`

    `diffusion-classifier finetune cats/ --model scenes --out lora/ --joint 0.02`

    `diffusion-classifier finetune captions.parquet --false-column false_captions --model scenes
    --out lora/ --joint 0.02`
    """
    import torch

    from ..classifier import DiffusionClassifier
    from ..data.captioned import open_captioned
    from ..data.prompts import check_names_are_words, fill_template, parse_labels
    from ..data.texts import is_text_source
    from ..denoisers import load_denoiser
    from ..denoisers.devices import resolve_device, resolve_dtype
    from ..training.confusable_classes import confusable_images, correct_by_scope, gains
    from ..training.denoising import TrainConfig
    from ..training.finetune import finetune as finetune_lora
    from ..training.images import TrainingCaptions, load_captioned_images, load_contrasted_images, load_labelled_images

    config = TrainConfig(
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay,
        ema=ema, label_dropout=0.0, joint=joint, rivals=rivals, seed=seed,
    )  # fmt: skip
    check_format(output)
    if not joint:
        refuse_unused(context, ("rivals",), "is for --joint")
    if false_column and not joint:
        raise InputError(
            "--false-column is for --joint, by which the true caption is told from false ones: give a weight"
        )
    confused = [] if classes is None else parse_labels(classes)
    if dtype == "auto" and resolve_dtype(dtype, resolve_device(device)) is torch.float16:
        dtype = "float32"  # in which gradients do not vanish
    denoiser = load_denoiser(model, device=device, dtype=dtype, image_size=image_size)
    reads = denoiser.class_names is None
    if not reads and (false_column or caption_column):
        raise InputError(f"{model} knows classes and reads no captions: leave out --caption-column and --false-column")
    if not reads:
        refuse_unused(context, ("template",), f"is for a model that reads text, and {model} knows classes")
    if classes is None and (number is not None or held_out is not None):
        raise InputError("--number and --held-out are for --classes")
    if confused and (false_column or caption_column):
        raise InputError("--classes is for images with labels: leave out --caption-column and --false-column")
    size = denoiser.image_size
    if false_column:
        source = open_captioned(
            data=data, split=split, image_column=image_column, caption_column=caption_column, false_column=false_column,
            allow_incomplete=allow_incomplete,
        )  # fmt: skip
        images = load_contrasted_images(source, size)
    elif caption_column is not None or (
        reads
        and not confused
        and label_column is None
        and class_names is None
        and is_text_source(data, split, allow_incomplete)
    ):
        images = load_captioned_images(
            data, split=split, size=size, image_column=image_column, caption_column=caption_column,
            allow_incomplete=allow_incomplete,
        )  # fmt: skip
    else:
        names = None if class_names is None else split_labels(class_names)
        labelled = load_labelled_images(
            data, split=split, size=size, image_column=image_column, label_column=label_column, class_names=names,
            crop=denoiser.crop, allow_incomplete=allow_incomplete,
        )  # fmt: skip
        if reads and not is_given(context, "template"):
            check_names_are_words(labelled.class_names, data)
        captions = fill_template(template, labelled.class_names) if reads else list(labelled.class_names)
        if confused:
            count = min(1000, len(labelled) // 10) if held_out is None else held_out
            labelled, validation = labelled.split(count, seed)
            images = confusable_images(labelled, confused, captions, number, seed)
            say(f"evaluating the model as it is on {len(validation)} images")
            before = correct_by_scope(DiffusionClassifier(denoiser), validation, confused, template if reads else None)
        else:
            images = TrainingCaptions(
                labelled.images, tuple(captions[i] for i in labelled.labels.tolist()), notes=labelled.notes
            )
    say_all(images.notes)
    say(f"{len(images)} images with {len(set(images.captions))} different captions")
    with reporter() as report:
        finetune_lora(
            images, denoiser, config, out, rank=rank, checkpoint_every=checkpoint_every, on_step=report.on_step,
            on_stage=report.on_stage,
        )  # fmt: skip
    say(f"saved to {out}")
    if confused:
        tuned = DiffusionClassifier.from_pretrained(
            model, device=device, dtype=dtype, image_size=image_size, loras=[out]
        )
        print_gains(gains(before, correct_by_scope(tuned, validation, confused, template if reads else None)), output)
