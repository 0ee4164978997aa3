"""Train class-conditional diffusion models from scratch: a UNet2DModel that diffusers loads."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DiTTransformer2DModel, SchedulerMixin, UNet2DModel
from torch import Tensor

from ..denoisers import load_denoiser
from ..denoisers.base import scheduler_config
from ..denoisers.devices import native_bfloat16
from ..denoisers.families.late import LateConditioned, LateConditionedPipeline
from ..denoisers.model_settings import SETTINGS_FILE
from ..diffusion.schedules import Schedule, read_scheduler
from ..errors import InputError
from ..files import write_durably
from ..search.engine import score
from ..search.jobs import ImageJob
from ..search.posterior import is_correct
from ..search.settings import ScoringSettings
from ..search.strategies import Fixed
from .checkpoint import CHECKPOINT, Checkpoint, check_out
from .denoising import Noised, TrainConfig, build_scheduler, draw_times, load_start
from .images import TrainingImages
from .joint import NetworkWithScale, cross_entropy, draw_rivals
from .loop import Callbacks, Progress, batch_rows, fit, generator_of, num_steps, seeded, writing

OUTER = ("conv_in.", "conv_out.", "class_embedding.", "pos_embed.", "proj_out_2.", "class_embedder.")
"""Parts of the names of parameters that are not maps between hidden layers."""


def build_network(config: TrainConfig, data: TrainingImages) -> tuple[torch.nn.Module, SchedulerMixin]:
    """Build the network with its initial weights, and the scheduler, for a data set.

    Raises:
        InputError: the sizes do not fit each other, or the model to start from has another shape or other classes.
    """
    channels, size = data.images.shape[1], data.images.shape[-1]
    halvings = max(len(config.channels), len(config.head)) - 1
    factor = config.patch_size * 2**halvings
    if size % factor:
        raise InputError(
            f"images of {size} pixels cannot be halved {halvings} times after folding by "
            f"{config.patch_size}: choose a size that is a multiple of {factor}"
        )
    depth, edge, classes = channels * config.patch_size**2, size // config.patch_size, len(data.class_names) + 1
    with seeded(config.seed):
        if config.head:
            trunk = (
                _transformer(config, edge, depth)
                if config.trunk == "transformer"
                else _unet(config, edge, depth, config.features)
            )
            network: torch.nn.Module = LateConditioned(trunk, _head(config, edge, depth, classes))
        else:
            network = _unet(config, edge, depth, depth, classes)
    if config.start:
        load_start(network, config, data.class_names)
    return network, build_scheduler(config)


def _unet(config: TrainConfig, edge: int, inputs: int, outputs: int, classes: int | None = None) -> UNet2DModel:
    return UNet2DModel(
        sample_size=edge,
        in_channels=inputs,
        out_channels=outputs,
        num_class_embeds=classes,
        down_block_types=["DownBlock2D"] * (len(config.channels) - 1)
        + ["AttnDownBlock2D" if config.attention else "DownBlock2D"],
        up_block_types=["AttnUpBlock2D" if config.attention else "UpBlock2D"]
        + ["UpBlock2D"] * (len(config.channels) - 1),
        attention_head_dim=min(32, config.channels[-1]),
        **_sizes(config.channels, config.layers, config),
    )


def _head(config: TrainConfig, edge: int, depth: int, classes: int) -> UNet2DModel:
    levels = len(config.head)
    return UNet2DModel(
        sample_size=edge,
        in_channels=depth + config.features,
        out_channels=depth,
        num_class_embeds=classes,
        down_block_types=["DownBlock2D"] * levels,
        up_block_types=["UpBlock2D"] * levels,
        mid_block_type="UNetMidBlock2D" if levels > 1 else None,
        add_attention=False,
        **_sizes(config.head, config.head_layers, config),
    )


def _sizes(channels: tuple[int, ...], layers: int, config: TrainConfig) -> dict[str, Any]:
    return {
        "block_out_channels": channels,
        "layers_per_block": layers,
        "norm_num_groups": math.gcd(32, *channels),
        "dropout": config.dropout,
        "resnet_time_scale_shift": "scale_shift",
    }


def _transformer(config: TrainConfig, edge: int, depth: int) -> DiTTransformer2DModel:
    (width,) = config.channels
    heads = max(1, width // 32)
    return DiTTransformer2DModel(
        sample_size=edge,
        in_channels=depth,
        out_channels=config.features,
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        num_layers=config.layers,
        patch_size=1,
        num_embeds_ada_norm=1,  # never used
        dropout=config.dropout,
    )


def _batch(
    step: int, data: TrainingImages, config: TrainConfig, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x and ε (B, *), t (B,) of a step, and the classes of its images, with the true or null class first."""
    generator = generator_of(config.seed, 1, step)
    rows = batch_rows(step, len(data), config.batch_size, config.seed)
    images, labels = data.images[rows], data.labels[rows]
    b = len(rows)
    if config.flip:
        mirrored = torch.rand(b, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    shown = labels[:, None].clone()
    shown[torch.rand(b, generator=generator) < config.label_dropout] = len(data.class_names)
    t = draw_times(b, config, schedule, generator)
    x = torch.nn.functional.pixel_unshuffle(images.float() / 127.5 - 1, config.patch_size)
    noise = torch.randn(x.shape, generator=generator)
    if config.joint:
        shown = torch.cat([shown, draw_rivals(labels, len(data.class_names), config.rivals, generator)], dim=1)
    return x, noise, t, shown


@dataclass(frozen=True)
class _Loss:
    """Training loss as a function of the step.

    Args:
        data: training images.
        config: settings.
        schedule: schedule of the model.
        network: network, perhaps compiled.
        log_scale: logarithm of the learned scale of the joint objective.
        device: device of the network.
        autocast: whether to autocast to bfloat16.
    """

    data: TrainingImages
    config: TrainConfig
    schedule: Schedule
    network: Callable[..., Any]
    log_scale: Tensor
    device: torch.device
    autocast: bool

    def __call__(self, step: int) -> Tensor:
        """Return the loss of a step."""
        config, num_classes = self.config, len(self.data.class_names)
        x, noise, t, shown = _batch(step, self.data, config, self.schedule)
        batch, classes = Noised(x, noise, t, self.schedule, self.device), shown.flatten().to(self.device)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            if not config.head and shown.shape[1] > 1:  # a head takes several classes of an image by itself
                noisy, t = (a.repeat_interleave(shown.shape[1], 0) for a in (noisy, t))
            return self.network(noisy, t, class_labels=classes).sample  # type: ignore[no-any-return]

        output = batch.predicted_by(predict, step, config, self.autocast).view(*shown.shape, *x.shape[1:])
        loss = batch.loss(output[:, 0], config)
        if config.joint:
            count = torch.tensor(num_classes, device=self.device)
            surprise = cross_entropy(batch.errors(output, config), self.log_scale.exp(), count)
            has_class = (shown[:, 0] < num_classes).to(self.device)  # perhaps for no image of a small batch
            loss = loss + config.joint * (surprise * has_class).sum() / has_class.sum().clamp(min=1)
        return loss


def train(
    data: TrainingImages,
    config: TrainConfig,
    out: Path,
    *,
    validation: TrainingImages | None = None,
    device: str = "cpu",
    mixed_precision: bool | None = None,
    compile_network: bool = False,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_validation: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> Path:
    """Train into the folder `out`, or resume training there. Returns the folder, which `DDPMPipeline` loads.

    Args:
        data: training images.
        config: settings.
        out: folder of the model. Its subfolder `checkpoint/` holds what is needed to resume.
        validation: images whose loss and accuracy are reported at each checkpoint; see `validate`.
        device: device of the network.
        mixed_precision: whether to autocast to bfloat16. Default: if the device computes in bfloat16 natively.
        compile_network: whether to use torch.compile. It takes about a minute to start, and pays off after a few
            hundred steps.
        checkpoint_every: steps between checkpoints; see `loop.Callbacks` for the default.
        on_step: called after each step.
        on_validation: called with the step and the measured values after each checkpoint.

    Raises:
        InputError: `out` holds a run with other settings or data, or a damaged one; the loss is no longer finite.
    """
    if checkpoint_every is not None and checkpoint_every < 1:
        raise InputError(f"there must be at least 1 step between checkpoints; got {checkpoint_every}")
    check_out(out, "model_index.json")
    unet, scheduler = build_network(config, data)
    schedule, _ = read_scheduler(scheduler_config(scheduler))
    unet.to(device).train()
    run = {"config": asdict(config), "data": data.fingerprint(), "class_names": list(data.class_names)}
    if not (out / CHECKPOINT / "run.json").is_file():
        with writing(out):  # now, in case the folder cannot be written
            out.mkdir(parents=True, exist_ok=True)
            settings = {"class_names": data.class_names, "patch_size": config.patch_size, "times": config.times}
            write_durably(out / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    place = torch.device(device)
    autocast = native_bfloat16(place) if mixed_precision is None else mixed_precision
    network = torch.compile(unet, dynamic=False) if compile_network else unet
    joint = NetworkWithScale(unet).to(place)

    def on_checkpoint(step: int) -> None:
        if validation is not None and len(validation):
            on_validation(step, validate(out, validation, device))

    fit(
        joint if config.joint else unet,
        _Loss(data, config, schedule, network, joint.log_scale, place, autocast),
        config,
        num_steps(config, len(data)),
        Checkpoint(out / CHECKPOINT, run, asdict(TrainConfig())),
        save=lambda ema: _save_model(out, unet, ema, scheduler),
        outer=OUTER,
        callbacks=Callbacks(checkpoint_every, on_step, on_checkpoint),
    )
    return out


def validate(folder: Path, validation: TrainingImages, device: str) -> dict[str, float]:
    """Return denoising loss and accuracy of a saved model, from a few draws on evenly spaced validation images.

    At most 200 images are used, and fewer if there are many classes, so that validation takes less time than training.
    Images and draws are the same in every call, so that values along a run can be compared.
    """
    denoiser = load_denoiser(folder.resolve(), device=device)  # a bare name could be that of a bundled model
    num_images = min(200, len(validation), max(20, 1000 // len(validation.class_names)))
    rows = torch.arange(num_images) * len(validation) // num_images  # the first ones could all be of one class
    images = [image.expand(3, -1, -1).float() / 127.5 - 1 for image in validation.images[rows]]
    labels = validation.labels[rows]
    conditioning = denoiser.condition(range(len(validation.class_names)))
    jobs = (ImageJob(str(i), image, key=i) for i, image in enumerate(images))
    settings = ScoringSettings(Fixed(8))
    tables = {int(r.name): r.errors for r in score(denoiser, jobs, conditioning, settings, batch_size=320)}
    errors = torch.stack([tables[i] for i in range(len(labels))])  # (images, K, N)
    of_true_class = errors[torch.arange(len(labels)), labels]
    return {
        "loss": float(of_true_class.mean()),
        "accuracy": float(is_correct(errors.mean(-1), labels).float().mean()),
    }


def _save_model(out: Path, unet: torch.nn.Module, ema: dict[str, Tensor], scheduler: SchedulerMixin) -> None:
    """Save the averaged weights as a diffusers folder. The network in training is not changed."""
    averaged = copy.deepcopy(unet)
    averaged.load_state_dict({name.removeprefix("network."): p for name, p in ema.items() if name != "log_scale"})
    if isinstance(averaged, LateConditioned):
        pipeline = LateConditionedPipeline(averaged.trunk, averaged.head, scheduler)
    else:
        pipeline = DDPMPipeline(averaged, scheduler)
    pipeline.save_pretrained(out, safe_serialization=True)
