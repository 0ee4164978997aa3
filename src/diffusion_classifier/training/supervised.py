"""Train image classifiers of transformers from scratch, as baselines: residual networks and vision transformers.

Shape legend: B images of a batch, S their edge.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.optim.swa_utils import update_bn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from ..baselines.encoders import DiffusionFeatures, features
from ..baselines.features import FEATURES, HEADS, Features, build_head
from ..baselines.pretrained import TRAINING_SIZE
from ..denoisers.base import Denoiser
from ..denoisers.devices import native_bfloat16
from ..denoisers.load import quiet
from ..errors import InputError
from .checkpoint import CHECKPOINT, Checkpoint, check_out
from .images import TrainingImages
from .latents import image_processor, pixels
from .loop import (
    OPTIMIZERS,
    Callbacks,
    Progress,
    batch_rows,
    check_settings,
    fit,
    generator_of,
    num_steps,
    seed_of,
    seeded,
    writing,
)

_RESNETS: dict[str, dict[str, Any]] = {
    "resnet-18": {"depths": [2, 2, 2, 2], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "resnet-34": {"depths": [3, 4, 6, 3], "layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]},
    "resnet-50": {"depths": [3, 4, 6, 3]},
    "resnet-101": {"depths": [3, 4, 23, 3]},
}
_VITS = {"vit-tiny": 192, "vit-small": 384, "vit-base": 768}
"""Width of each architecture. All have 12 layers, with attention heads of width 64."""
ARCHITECTURES = (*_RESNETS, *_VITS)
AUGMENTATIONS = ("none", "flips", "usual")
_STATISTICS = 50
"""Number of batches from which means and variances of batch normalisation are computed."""
_OUTER = ("embedder.embedder.", "embeddings.", "classifier.")


@dataclass(frozen=True)
class SupervisedConfig:
    """Settings for the training of an image classifier.

    Args:
        architecture: one of `ARCHITECTURES`, or of `HEADS` for a head on features of a diffusion model.
        augment: one of `AUGMENTATIONS`: random flips ("flips"), and also shifts by up to an eighth ("usual").
        epochs: number of passes over the training images; see `loop.num_steps` for None.
        batch_size: images per step.
        optimizer: one of `loop.OPTIMIZERS`.
        learning_rate: peak of the cosine schedule.
        warmup: steps of linear warm-up, at most a tenth of all steps.
        weight_decay: weight decay of the optimizer, as a share of the learning rate.
        ema: decay of the exponential moving average that is saved.
        seed: seed of initial weights, data order, augmentation and dropout.

    Raises:
        InputError: a value is out of range.
    """

    architecture: str = "resnet-18"
    augment: str = "usual"
    epochs: float | None = None
    batch_size: int = 64
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"architecture": (*ARCHITECTURES, *HEADS), "augment": AUGMENTATIONS, "optimizer": OPTIMIZERS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        check_settings(self)


def resolution(architecture: str, size: int) -> int:
    """Return the edge of a network's input. Residual networks shrink images at once, so small ones are enlarged."""
    return 4 * size if architecture in _RESNETS and size <= 64 else size


def build_classifier(config: SupervisedConfig, data: TrainingImages) -> Any:
    """Build the network with its initial weights.

    Raises:
        InputError: images that cannot be cut into squares, or an architecture that is a head.
    """
    if config.architecture in HEADS:
        raise InputError(f"{config.architecture} is a head on features of a diffusion model, and no network by itself")
    size = data.images.shape[-1]
    names = dict(enumerate(data.class_names))
    labels: dict[str, Any] = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    labels[TRAINING_SIZE] = size
    with seeded(config.seed):
        if config.architecture in _RESNETS:
            return ResNetForImageClassification(ResNetConfig(**_RESNETS[config.architecture], **labels))
        cuts, width = 7 if size < 112 else 14, _VITS[config.architecture]
        if size % cuts:
            raise InputError(f"images of {size} pixels cannot be cut into {cuts} × {cuts} squares: choose another size")
        heads = {"num_attention_heads": width // 64, "num_hidden_layers": 12, "intermediate_size": 4 * width}
        shape = {"hidden_size": width, "image_size": size, "patch_size": size // cuts, **heads}
        # The gradient of torch's fused attention is slow on a CPU.
        return ViTForImageClassification._from_config(ViTConfig(**shape, **labels), attn_implementation="eager")


def augmented(images: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Augment images (B, C, S, S) for training. Pixels from outside an image are black."""
    b, size = len(images), images.shape[-1]
    if augment == "none":
        return images
    mirrored = torch.rand(b, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if augment == "flips":
        return images
    reach = size // 8
    padded = torch.nn.functional.pad(images, (reach,) * 4)
    corner = torch.randint(2 * reach + 1, (2, b, 1), generator=generator) + torch.arange(size)
    rows, columns = corner[0][:, :, None], corner[1][:, None, :]
    return padded.permute(0, 2, 3, 1)[torch.arange(b)[:, None, None], rows, columns].permute(0, 3, 1, 2)


def train_supervised(
    data: TrainingImages,
    config: SupervisedConfig,
    out: Path,
    *,
    validation: TrainingImages | None = None,
    device: str = "cpu",
    mixed_precision: bool | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_validation: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> Path:
    """Train into the folder `out`, or resume training there. Returns the folder, which transformers loads.

    Args:
        data: training images.
        config: settings.
        out: folder of the model. Its subfolder `checkpoint/` holds what is needed to resume.
        validation: images whose accuracy is reported at each checkpoint.
        device: device of the network.
        mixed_precision: whether to autocast to bfloat16. Default: if the device computes in bfloat16 natively.
        checkpoint_every: steps between checkpoints; see `loop.Callbacks` for the default.
        on_step: called after each step.
        on_validation: called with the step and the measured values after each checkpoint.

    Raises:
        InputError: images that do not fit the architecture; `out` holds another run, or a damaged one; the loss is no
            longer finite.
    """
    check_out(out, "config.json")
    place = torch.device(device)
    edge = resolution(config.architecture, data.images.shape[-1])

    def prepare(images: Tensor, _: torch.Generator | None) -> Tensor:
        x = pixels(images, torch.arange(len(images)), place)
        x = torch.nn.functional.interpolate(x, size=edge, mode="bilinear") if edge > x.shape[-1] else x
        return x.contiguous(memory_format=torch.channels_last)  # convolutions are a fifth faster on a CPU

    processor = image_processor(edge, resample=Resampling.BILINEAR)

    def save(averaged: Any) -> None:
        with quiet():
            averaged.save_pretrained(out)
            processor.save_pretrained(out)

    with writing(out):  # now, in case the folder cannot be written
        out.mkdir(parents=True, exist_ok=True)
    network = build_classifier(config, data).to(place)
    run = _Run(data, config, out, validation, mixed_precision, checkpoint_every, on_step, on_validation)
    run.fit(network, prepare, save, asdict(config))
    return out


def train_features(
    data: TrainingImages,
    denoiser: Denoiser,
    model: str,
    config: SupervisedConfig,
    out: Path,
    *,
    validation: TrainingImages | None = None,
    mixed_precision: bool | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_validation: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> Path:
    """Train a head on the features of a diffusion model, or resume training. `Features` loads the folder.

    Args:
        data: training images of the model's size.
        denoiser: the model, which is not changed.
        model: name or path of the model, with which the head loads it.
        config: settings. The architecture is one of `HEADS`.
        out: see `train_supervised`.
        validation: see `train_supervised`.
        mixed_precision: see `train_supervised`.
        checkpoint_every: see `train_supervised`.
        on_step: see `train_supervised`.
        on_validation: see `train_supervised`.

    Raises:
        InputError: as `train_supervised`; a model without a null condition or without features.
    """
    check_out(out, FEATURES)
    place = denoiser.device

    @torch.no_grad()
    def prepare(images: Tensor, generator: torch.Generator | None) -> Tensor:
        latents = denoiser.encode(pixels(images, torch.arange(len(images)), place))
        noise = None if generator is None else torch.randn(latents.shape, generator=generator).to(place)
        return features(denoiser, latents, noise)

    if config.architecture not in HEADS:
        raise InputError(f"head {config.architecture!r} is not one of {', '.join(HEADS)}")
    channels = prepare(data.images[:1], None).shape[1]
    with seeded(config.seed):
        head = build_head(config.architecture, channels, len(data.class_names)).to(place)

    def save(averaged: torch.nn.Module) -> None:
        Features(DiffusionFeatures(denoiser), averaged, data.class_names).save(
            out, model, config.architecture, channels
        )

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    run = _Run(data, config, out, validation, mixed_precision, checkpoint_every, on_step, on_validation)
    run.fit(head, prepare, save, {**asdict(config), "model": denoiser.fingerprint()})
    return out


@dataclass(frozen=True)
class _Run:
    """Training run of a classifier; see `train_supervised`."""

    data: TrainingImages
    config: SupervisedConfig
    out: Path
    validation: TrainingImages | None
    mixed_precision: bool | None
    checkpoint_every: int | None
    on_step: Callable[[Progress], None]
    on_validation: Callable[[int, dict[str, float]], None]

    def fit(
        self,
        network: Any,
        prepare: Callable[[Tensor, torch.Generator | None], Tensor],
        save: Callable[[Any], None],
        settings: dict[str, Any],
    ) -> None:
        """Minimise the cross-entropy of a network.

        Args:
            network: network on its device.
            prepare: function from images (B, C, S, S), uint8, and the generator of their noise to the network's input.
            save: called with the averaged network before each checkpoint is written.
            settings: settings that identify the run.
        """
        data, config = self.data, self.config
        place = next(network.parameters()).device
        autocast = native_bfloat16(place) if self.mixed_precision is None else self.mixed_precision
        averaged = copy.deepcopy(network).eval().requires_grad_(False)
        network.train().requires_grad_(True)

        def batch(step: int) -> tuple[Tensor, Tensor]:
            rows = batch_rows(step, len(data), config.batch_size, config.seed)
            images = augmented(data.images[rows], config.augment, generator_of(config.seed, 1, step))
            return prepare(images, generator_of(config.seed, 3, step)), data.targets[rows].to(place)

        def logits(network: Any, x: Tensor) -> Tensor:
            with torch.autocast(place.type, torch.bfloat16, enabled=autocast):
                output = network(x)
            return getattr(output, "logits", output).float()  # type: ignore[no-any-return]

        def loss_at(step: int) -> Tensor:
            x, targets = batch(step)
            with seeded(seed_of(config.seed, 2, step)):
                return torch.nn.functional.cross_entropy(logits(network, x), targets)

        def save_average(ema: dict[str, Tensor]) -> None:
            averaged.load_state_dict(ema, strict=False)
            with torch.autocast(place.type, torch.bfloat16, enabled=autocast):
                # The averaged weights need batch statistics of their own.
                update_bn((batch(step)[0] for step in range(_STATISTICS)), averaged)
            save(averaged)

        @torch.no_grad()
        def on_checkpoint(step: int) -> None:
            images = self.validation
            if images is not None and len(images):
                rows = torch.split(torch.arange(len(images)), config.batch_size)
                chosen = [logits(averaged, prepare(images.images[part], None)).argmax(1).cpu() for part in rows]
                name = "accuracy" if images.posteriors is None else "agreement"
                self.on_validation(step, {name: float((torch.cat(chosen) == images.labels).float().mean())})

        run = {"config": settings, "data": data.fingerprint(), "class_names": list(data.class_names)}
        fit(
            network,
            loss_at,
            config,
            num_steps(config, len(data)),
            Checkpoint(self.out / CHECKPOINT, run),
            save_average,
            outer=_OUTER,
            callbacks=Callbacks(self.checkpoint_every, self.on_step, on_checkpoint),
        )
