"""`finetune`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import Device, Dtype, ImageSize, TableFormat, app, check_unused, is_given, say, say_all
from .summaries import print_gains
from .training_options import TrainingDataOptions, TrainingOptions, reporter

if TYPE_CHECKING:  # takes seconds to import
    from ..training.images import TrainingCaptions


@dataclass(frozen=True)
class _CaptionOptions:
    """Options that make captions of images, or find them."""

    template: Annotated[str, option("Data", "Caption of an image with a label, for a text-to-image model.")] = "a {}"
    caption_column: Annotated[str | None, option("Data", "Column of the captions. Default: text or caption.")] = None
    false_column: Annotated[
        list[str] | None, option("Data", "Column of false captions, as negatives for --joint. Repeatable.")
    ] = None


@dataclass(frozen=True)
class _ConfusedOptions:
    """Options that select images of classes that the model confuses."""

    classes: Annotated[
        str | None,
        option("Data", "Comma-separated classes that are confused. Only their images are used. Default: all classes."),
    ] = None
    number: Annotated[int | None, option("Data", "With --classes, number of training images. Default: all.")] = None
    held_out: Annotated[
        int | None,
        option(
            "Data",
            "With --classes, images of all classes to evaluate the model on, before and after training. Default: a "
            "tenth, at most 1,000.",
            min=1,
        ),
    ] = None

    def names(self) -> list[str]:
        """Return the confused classes.

        Raises:
            InputError: another option is given that needs --classes.
        """
        from ..data.prompts import parse_labels

        if self.classes is None and (self.number is not None or self.held_out is not None):
            raise InputError("--number and --held-out are for --classes")
        return [] if self.classes is None else parse_labels(self.classes)


@dataclass(frozen=True)
class _FinetuneOptions(TrainingOptions):
    epochs: Annotated[float, option("Training", "Passes over the training images.")] = 10.0


@app.command()
@takes_groups
def finetune(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="Captioned images, or a folder with one sub-folder of images per class, as for `train`. With "
            "--false-column, a file of captions."
        ),
    ],
    model: Annotated[str, option("Model", "Model to fine-tune: bundled name, folder or hub id.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the LoRA weights. Run the command again to resume from its checkpoint.")
    ],
    columns: TrainingDataOptions = TrainingDataOptions(),
    captions: _CaptionOptions = _CaptionOptions(),
    confused: _ConfusedOptions = _ConfusedOptions(),
    rank: Annotated[int, option("Training", "Rank of the LoRA matrices.")] = 8,
    joint: Annotated[
        float, option("Training", "Weight of the classifier's cross-entropy beside the denoising error.")
    ] = 0.0,
    rivals: Annotated[
        int, option("Training", "With --joint, negatives per step: false captions of the image. 0: all.")
    ] = 3,
    training: _FinetuneOptions = _FinetuneOptions(batch_size=8, learning_rate=1e-3, warmup=20, ema=0.99),
    image_size: ImageSize = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: TableFormat = "table",
) -> None:
    """Fine-tune a model by LoRA on captioned or labelled images, to denoise and, with --joint, to classify.

    `--lora` of every other command loads the weights. diffusers loads those of a text-to-image model, too.

    Examples:
    `diffusion-classifier finetune clothes/ --model fashion --classes 'Shirt,T-shirt/top' --number 175 --joint 0.02
    --out lora/`

    `diffusion-classifier finetune cats/ --model scenes --out lora/ --joint 0.02`

    `diffusion-classifier finetune captions.parquet --false-column false_captions --model scenes
    --out lora/ --joint 0.02`
    """
    import torch

    from ..classifier import DiffusionClassifier
    from ..data.prompts import check_names_are_words, fill_template
    from ..denoisers import load_denoiser
    from ..denoisers.devices import resolve_device, resolve_dtype
    from ..training.confusable_classes import confusable_images, correct_by_scope, gains
    from ..training.denoising import TrainConfig
    from ..training.finetuning import finetune as finetune_lora
    from ..training.images import TrainingCaptions, load_labelled_images

    config = TrainConfig(label_dropout=0.0, joint=joint, rivals=rivals, **training.config())
    if not joint:
        check_unused(context, ("rivals",), "is for --joint")
    if captions.false_column and not joint:
        raise InputError("--false-column gives negatives for --joint: give its weight")
    names = confused.names()
    if dtype == "auto" and resolve_dtype(dtype, resolve_device(device)) is torch.float16:
        dtype = "float32"  # gradients would underflow in float16
    denoiser = load_denoiser(model, device=device, dtype=dtype, image_size=image_size)
    reads_text = denoiser.class_names is None
    _check_captions(context, model, reads_text, captions, bool(names))
    if _has_captions(data, reads_text, columns, captions, bool(names)):
        images = _load_captions(data, denoiser.image_size, columns, captions)
    else:
        labelled = load_labelled_images(data, size=denoiser.image_size, crop=denoiser.crop, **columns.arguments())
        if reads_text and not is_given(context, "template"):
            check_names_are_words(labelled.class_names, data)
        template = captions.template if reads_text else None
        texts = list(labelled.class_names) if template is None else fill_template(template, labelled.class_names)
        if names:
            count = min(1000, len(labelled) // 10) if confused.held_out is None else confused.held_out
            labelled, validation = labelled.split(count, training.seed)
            images = confusable_images(labelled, names, texts, confused.number, training.seed)
            say(f"evaluating the model before training on {len(validation)} images")
            before = correct_by_scope(DiffusionClassifier(denoiser), validation, names, template)
        else:
            labels = tuple(texts[i] for i in labelled.labels.tolist())
            images = TrainingCaptions(labelled.images, labels, notes=labelled.notes)
    say_all(images.notes)
    say(f"{len(images)} images with {len(set(images.captions))} different captions")
    with reporter() as report:
        finetune_lora(
            images, denoiser, config, out, rank=rank, checkpoint_every=training.checkpoint_every,
            on_step=report.on_step, on_stage=report.on_stage,
        )  # fmt: skip
    say(f"saved to {out}")
    if names:
        tuned = DiffusionClassifier.from_pretrained(
            model, device=device, dtype=dtype, image_size=image_size, loras=[out]
        )
        print_gains(gains(before, correct_by_scope(tuned, validation, names, template)), output)


def _check_captions(
    context: typer.Context, model: str, reads_text: bool, captions: _CaptionOptions, confused: bool
) -> None:
    """Raise if the model or --classes has no use for captions."""
    columns = captions.false_column or captions.caption_column
    if not reads_text and columns:
        raise InputError(
            f"{model} is class-conditional and takes no captions: leave out --caption-column and --false-column"
        )
    if not reads_text:
        check_unused(context, ("template",), f"is for a text-to-image model, and {model} is class-conditional")
    if confused and columns:
        raise InputError("--classes is for images with labels: leave out --caption-column and --false-column")


def _has_captions(
    data: str, reads_text: bool, columns: TrainingDataOptions, captions: _CaptionOptions, confused: bool
) -> bool:
    """Return True if the images have captions, and are not labelled."""
    from ..data.texts import is_text_source

    if captions.false_column or captions.caption_column is not None:
        return True
    labelled = confused or columns.label_column is not None or columns.class_names is not None
    return reads_text and not labelled and is_text_source(data, columns.split, columns.allow_incomplete)


def _load_captions(data: str, size: int, columns: TrainingDataOptions, captions: _CaptionOptions) -> TrainingCaptions:
    """Load captioned images, with their false captions if there are any."""
    from ..data.captioned import open_captioned
    from ..training.images import load_captioned_images, load_contrasted_images

    common: dict[str, Any] = {
        "split": columns.split, "image_column": columns.image_column, "caption_column": captions.caption_column,
        "allow_incomplete": columns.allow_incomplete,
    }  # fmt: skip
    if not captions.false_column:
        return load_captioned_images(data, size=size, **common)
    return load_contrasted_images(open_captioned(data=data, false_column=captions.false_column, **common), size)
