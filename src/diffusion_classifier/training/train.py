"""Class-conditional diffusion from scratch: a UNet2DModel that diffusers itself loads back."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DDPMPipeline, SchedulerMixin, UNet2DModel
from torch import Tensor

from ..denoisers import load_denoiser
from ..denoisers.base import scheduler_config
from ..denoisers.load import SETTINGS_FILE
from ..devices import native_bfloat16
from ..exceptions import InputError
from ..files import write_durably
from ..jobs import Job
from ..schedules import Schedule, read_scheduler
from ..scoring import score
from ..strategies import Fixed
from .data import LabelledImages
from .denoising import TrainConfig, build_scheduler, denoising_loss, draw_times
from .loop import Progress, batch_rows, fit, generator_of, num_steps, seeded, writing

CHECKPOINT = "checkpoint"
OUTER = ("conv_in.", "conv_out.", "class_embedding.")
"""How the names of parameters begin that are no maps between hidden layers."""


def build_network(config: TrainConfig, data: LabelledImages) -> tuple[UNet2DModel, SchedulerMixin]:
    """Network with the weights that training starts from, and scheduler, for these data.

    Raises:
        InputError: the sizes do not fit each other, or the model to start from has another shape or other classes.
    """
    channels, size = data.images.shape[1], data.images.shape[-1]
    factor = config.patch_size * 2 ** (len(config.channels) - 1)
    if size % factor:
        raise InputError(
            f"images of {size} pixels cannot be halved {len(config.channels) - 1} times after folding by "
            f"{config.patch_size}: choose a size that is a multiple of {factor}"
        )
    levels = len(config.channels)
    down = ["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D" if config.attention else "DownBlock2D"]
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    groups = math.gcd(32, *config.channels)
    with seeded(config.seed):
        unet = UNet2DModel(
            sample_size=size // config.patch_size,
            in_channels=channels * config.patch_size**2,
            out_channels=channels * config.patch_size**2,
            block_out_channels=config.channels,
            layers_per_block=config.layers,
            down_block_types=down,
            up_block_types=up,
            attention_head_dim=min(32, config.channels[-1]),
            norm_num_groups=groups,
            dropout=config.dropout,
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=len(data.class_names) + 1,
        )
    if config.start:
        _load_start(unet, config, data)
    return unet, build_scheduler(config)


def _load_start(unet: UNet2DModel, config: TrainConfig, data: LabelledImages) -> None:
    model = load_denoiser(config.start, device="cpu", dtype="float32")
    names = tuple(model.class_names or ())
    if names != tuple(data.class_names):
        raise InputError(
            f"training cannot start from {config.start}: its classes are {', '.join(names) or 'texts'}, "
            f"and those of the data {', '.join(data.class_names)}"
        )
    try:
        unet.load_state_dict(model.network.state_dict())
    except RuntimeError as e:
        raise InputError(
            f"training cannot start from {config.start}: its network has another shape than patch size "
            f"{config.patch_size}, channels {config.channels} and {config.layers} layers give"
        ) from e


def _batch(
    step: int, data: LabelledImages, config: TrainConfig, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and ε (B, *), t and class labels (B,) of a step."""
    generator = generator_of(config.seed, 1, step)
    rows = batch_rows(step, len(data), config.batch_size, config.seed)
    images, labels = data.images[rows], data.labels[rows].clone()
    b = len(rows)
    if config.flip:
        mirrored = torch.rand(b, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    labels[torch.rand(b, generator=generator) < config.label_dropout] = len(data.class_names)
    t = draw_times(b, config, schedule, generator)
    x = torch.nn.functional.pixel_unshuffle(images.float() / 127.5 - 1, config.patch_size)
    return x, torch.randn(x.shape, generator=generator), t, labels


def train(
    data: LabelledImages,
    config: TrainConfig,
    out: Path,
    *,
    validation: LabelledImages | None = None,
    device: str = "cpu",
    mixed_precision: bool | None = None,
    compile_network: bool = False,
    checkpoint_every: int = 1000,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_validation: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> Path:
    """Train, or go on training, into the folder `out`; returns the folder, which `DDPMPipeline` loads.

    Args:
        data: training images.
        config: how.
        out: holds the model, and in `checkpoint/` what is needed to go on.
        validation: images whose loss and accuracy are reported at each checkpoint; see `validate`.
        device: of the network.
        mixed_precision: bfloat16 autocast; where the processor computes in it natively if None.
        compile_network: torch.compile; takes a minute or so to start, and pays off after a few hundred steps.
        checkpoint_every: steps between checkpoints.
        on_step: called after each step.
        on_validation: called with the step and the measured values after each checkpoint.

    Raises:
        InputError: `out` holds a run of other settings or data, or a damaged one; the loss is no longer finite.
    """
    if checkpoint_every < 1:
        raise InputError(f"there must be at least 1 step between checkpoints; got {checkpoint_every}")
    if (out / "model_index.json").exists() and not (out / CHECKPOINT).exists():
        raise InputError(f"{out} holds a model that no training here made: choose another --out")
    unet, scheduler = build_network(config, data)
    schedule, _ = read_scheduler(scheduler_config(scheduler))
    unet.to(device).train()
    run = {"config": asdict(config), "data": data.fingerprint(), "class_names": list(data.class_names)}
    if not (out / CHECKPOINT / "run.json").is_file():
        with writing(out):  # now, since it may not be allowed
            out.mkdir(parents=True, exist_ok=True)
            settings = {"class_names": data.class_names, "patch_size": config.patch_size, "times": config.times}
            write_durably(out / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    place = torch.device(device)
    autocast = native_bfloat16(place) if mixed_precision is None else mixed_precision
    network = torch.compile(unet, dynamic=False) if compile_network else unet

    def loss_at(step: int) -> Tensor:
        x, noise, t, labels = _batch(step, data, config, schedule)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            return network(noisy, t, class_labels=labels.to(device)).sample  # type: ignore[no-any-return]

        return denoising_loss(x, noise, t, predict, step, config, schedule, place, autocast)

    def on_checkpoint(step: int) -> None:
        if validation is not None and len(validation):
            on_validation(step, validate(out, validation, device))

    fit(
        unet,
        loss_at,
        config,
        num_steps(config, len(data)),
        out / CHECKPOINT,
        run,
        defaults=asdict(TrainConfig()),
        save=lambda ema: _save_model(out, unet, ema, scheduler),
        outer=OUTER,
        checkpoint_every=checkpoint_every,
        on_step=on_step,
        on_checkpoint=on_checkpoint,
    )
    return out


def validate(folder: Path, validation: LabelledImages, device: str, num_images: int = 200) -> dict[str, float]:
    """Denoising loss, and accuracy from a few draws, of a saved model on evenly spread validation images.

    Images and draws are the same at every call, so that values along a run can be compared.
    """
    denoiser = load_denoiser(folder.resolve(), device=device)  # a bare name might be that of a bundled model
    num_images = min(num_images, len(validation))
    rows = torch.arange(num_images) * len(validation) // num_images  # the first ones might all be of one class
    images = [image.expand(3, -1, -1).float() / 127.5 - 1 for image in validation.images[rows]]
    labels = validation.labels[rows]
    conditioning = denoiser.condition(range(len(validation.class_names)))
    jobs = (Job(str(i), image, key=i) for i, image in enumerate(images))
    tables = {int(r.name): r.errors for r in score(denoiser, jobs, conditioning, Fixed(8), batch_size=320)}
    errors = torch.stack([tables[i] for i in range(len(labels))])  # (images, K, N)
    of_true_class = errors[torch.arange(len(labels)), labels]
    return {
        "loss": float(of_true_class.mean()),
        "accuracy": float((errors.mean(-1).argmin(1) == labels).float().mean()),
    }


def _save_model(out: Path, unet: UNet2DModel, ema: dict[str, Tensor], scheduler: SchedulerMixin) -> None:
    """The averaged weights as a diffusers folder. The network that is being trained stays as it is."""
    averaged = copy.deepcopy(unet)
    averaged.load_state_dict(ema)
    DDPMPipeline(averaged, scheduler).save_pretrained(out, safe_serialization=True)
