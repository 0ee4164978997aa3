"""`train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import Compile, Device, app, check_unused, say, say_all
from .training_options import (
    LabelledData,
    ModelOut,
    Optimizer,
    Size,
    TrainingDataOptions,
    TrainingOptions,
    load_and_hold_out,
    reporter,
)

if TYPE_CHECKING:  # takes seconds to import
    from ..training.denoising import TrainConfig


@dataclass(frozen=True)
class _NetworkOptions:
    """Options of the network and of its noise process; names are those of `TrainConfig`."""

    objective: Annotated[
        Literal["epsilon", "v_prediction", "sample", "flow"],
        option("Network", "Prediction type: epsilon, v_prediction, sample or flow.", metavar="OBJECTIVE"),
    ] = "v_prediction"
    beta_schedule: Annotated[
        Literal["linear", "scaled_linear", "squaredcos_cap_v2"],
        option("Network", "Noise schedule: linear, scaled_linear or squaredcos_cap_v2.", metavar="SCHEDULE"),
    ] = "linear"
    times: Annotated[
        str,
        option(
            "Network",
            "Distribution of training timesteps: even, logit-normal (more in the middle), or a JSON file of timestep "
            "weights.",
        ),
    ] = "even"
    weighting: Annotated[
        Literal["output", "noise"],
        option("Network", "Minimize the error of the network's output, or of the noise computed from it."),
    ] = "output"
    patch_size: Annotated[
        int, option("Network", "Fold patches of P×P pixels into channels, which is faster at high resolution.")
    ] = 1
    channels: Annotated[str, option("Network", "Comma-separated channels of each resolution level, high to low.")] = (
        "64,128"
    )
    layers: Annotated[int, option("Network", "Residual blocks per level.")] = 2
    attention: Annotated[
        bool,
        option("Network", "Attention in all blocks of the lowest resolution. Default: in the middle block."),
    ] = False
    dropout: Annotated[float, option("Network", "Dropout probability in the residual blocks.")] = 0.0
    head: Annotated[
        str | None,
        option(
            "Network",
            "Late conditioning: comma-separated channels of a class-conditional head, on a backbone shared by all "
            "classes. Default: none.",
        ),
    ] = None
    trunk: Annotated[Literal["unet", "transformer"], option("Network", "With --head, type of the shared backbone.")] = (
        "unet"
    )
    head_layers: Annotated[int, option("Network", "Residual blocks per level of the head.")] = 1
    features: Annotated[int, option("Network", "Channels from the backbone to the head.")] = 64

    def config(self) -> dict[str, Any]:
        """Return these settings of `TrainConfig`."""
        from ..diffusion.timestep_weights import read_weights

        return vars(self) | {
            "times": read_weights(self.times) if Path(self.times).is_file() else self.times,
            "channels": _ints(self.channels, "--channels"),
            "head": _ints(self.head, "--head") if self.head else (),
        }


@dataclass(frozen=True)
class _TextOptions:
    """Options of the other parts of a text-to-image model."""

    caption_column: Annotated[str | None, option("Captions", "Column of the captions. Default: text or caption.")] = (
        None
    )
    contrastive: Annotated[
        str,
        option(
            "Captions",
            "Settings of the contrastive model whose text encoder is used, such as width=128,layers=4,epochs=10, or "
            "the folder of one.",
        ),
    ] = ""
    autoencoder: Annotated[
        str,
        option(
            "Captions",
            "Settings of the autoencoder, such as channels=32/64/64,latent_channels=8,epochs=1, or the folder of one.",
        ),
    ] = ""


@app.command()
@takes_groups
def train(
    context: typer.Context,
    data: LabelledData,
    out: ModelOut,
    columns: TrainingDataOptions = TrainingDataOptions(),
    size: Size = None,
    validation: Annotated[
        int | None,
        option(
            "Data",
            "Images held out for validation, of which at most 200 are used. Default: a tenth, at most 1,000.",
            min=0,
        ),
    ] = None,
    text: _TextOptions = _TextOptions(),
    network: _NetworkOptions = _NetworkOptions(),
    optimizer: Optimizer = "adamw",
    training: TrainingOptions = TrainingOptions(batch_size=32, learning_rate=1e-3, warmup=500),
    label_dropout: Annotated[float, option("Training", "Share of images trained on under the null condition.")] = 0.1,
    joint: Annotated[
        float, option("Training", "Weight of the classifier's cross-entropy beside the denoising error.")
    ] = 0.0,
    rivals: Annotated[int, option("Training", "With --joint, negative classes per step. 0: all other classes.")] = 0,
    flip: Annotated[bool, option("Training", "Mirror images at random.")] = False,
    start: Annotated[
        str, option("Training", "Model whose weights training starts from. Default: random weights.")
    ] = "",
    device: Device = "auto",
    compile_network: Compile = False,
) -> None:
    """Train a small diffusion model from scratch: class-conditional in pixel space, or text-to-image.

    A folder with one sub-folder per class gives a class-conditional model. A folder with a metadata.csv of file_name
    and text gives a Stable Diffusion pipeline, trained in three stages: a contrastive model, an autoencoder, and the
    diffusion model.

    Examples:
    `diffusion-classifier train photos/ --out model/ --size 32`

    `diffusion-classifier train captioned/ --out model/ --contrastive layers=4,epochs=10 --epochs 4`
    """
    from ..data.texts import is_text_source
    from ..denoisers.devices import resolve_device
    from ..training.class_model import train as train_classes
    from ..training.denoising import TrainConfig
    from ..training.loop import num_steps

    captioned = text.caption_column is not None or (
        columns.label_column is None and is_text_source(data, columns.split, columns.allow_incomplete)
    )
    if not network.head:
        check_unused(context, ("trunk", "head_layers", "features"), "is for --head")
    if not joint:
        check_unused(context, ("rivals",), "is for --joint")
    if captioned:
        check_unused(context, ("class_names", "label_column"), "is for classes, and the images have captions")
    else:
        check_unused(context, ("contrastive", "autoencoder"), "is for images with captions")
    config = TrainConfig(
        **network.config(), **training.config(), optimizer=optimizer, label_dropout=label_dropout, joint=joint,
        rivals=rivals, flip=flip, start=start,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "device": str(resolve_device(device)),
        "compile_network": compile_network,
        "checkpoint_every": training.checkpoint_every,
    }
    if captioned:
        if validation is not None:
            raise InputError("--validation is for class-conditional models: all captioned images are trained on")
        _train_on_captions(data, columns, size, text, config, out, settings)
    else:
        images, held_out = load_and_hold_out(data, columns, validation, training.seed, size=size)
        with reporter() as report:
            report.on_stage("training", num_steps(config, len(images)), config.batch_size)
            train_classes(
                images, config, out, validation=held_out, on_step=report.on_step,
                on_validation=report.on_validation, **settings,
            )  # fmt: skip
    say(f"saved to {out}")


def _train_on_captions(
    data: str,
    columns: TrainingDataOptions,
    size: int | None,
    text: _TextOptions,
    config: TrainConfig,
    out: Path,
    settings: dict[str, Any],
) -> None:
    """Train a text-to-image model."""
    from ..training.images import load_captioned_images
    from ..training.text_model import train_text
    from ..training.text_networks import Latents, Towers, read_settings

    def folder_or_settings(given: str, kind: Any) -> Any:
        return Path(given) if given and Path(given).exists() else read_settings(kind, given)

    towers, latents = folder_or_settings(text.contrastive, Towers), folder_or_settings(text.autoencoder, Latents)
    captioned = load_captioned_images(
        data, split=columns.split, size=size, image_column=columns.image_column, caption_column=text.caption_column,
        allow_incomplete=columns.allow_incomplete,
    )  # fmt: skip
    say_all(captioned.notes)
    say(f"{len(captioned)} images with {len(set(captioned.captions))} different captions")
    with reporter() as report:
        train_text(
            captioned, config, out, towers=towers, latents=latents, on_step=report.on_step, on_stage=report.on_stage,
            **settings,
        )  # fmt: skip


def _ints(text: str, name: str) -> tuple[int, ...]:
    """Parse comma-separated whole numbers.

    Raises:
        InputError: a part of the text is no whole number.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise InputError(f"{name} {text!r}: whole numbers separated by commas were expected") from e
