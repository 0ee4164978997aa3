"""Image classifiers of transformers from scratch, for comparison: residual networks and vision transformers.

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
from .images import TrainingImages
from .latents import image_processor, pixels
from .loop import (
    OPTIMIZERS,
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
"""Widths; heads are 64 wide, and there are 12 layers."""
ARCHITECTURES = (*_RESNETS, *_VITS)
AUGMENTATIONS = ("none", "flips", "usual")
_STATISTICS = 50
"""Batches by which means and variances of batch normalisation are measured."""
_OUTER = ("embedder.embedder.", "embeddings.", "classifier.")


@dataclass(frozen=True)
class SupervisedConfig:
    """How an image classifier is trained.

    Args:
        architecture: one of `ARCHITECTURES`; of `HEADS` for one on features of a diffusion model.
        augment: one of `AUGMENTATIONS`: mirrored at random ("flips"), and moved by up to an eighth as well ("usual").
        epochs: passes over the training images; see `loop.num_steps` for None.
        batch_size: images per step.
        optimizer: one of `loop.OPTIMIZERS`.
        learning_rate: peak of the cosine schedule.
        warmup: steps of linear warm-up, a tenth of all at most.
        weight_decay: of the optimizer, as a share of the learning rate.
        ema: decay of the exponential moving average that is saved.
        seed: of initial weights, data order, augmentation and dropout.

    Raises:
        InputError: a value cannot be used.
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
    """Edge of the images that a network sees: residual networks make theirs four times smaller at once."""
    return 4 * size if architecture in _RESNETS and size <= 64 else size


def build_classifier(config: SupervisedConfig, data: TrainingImages) -> Any:
    """Network with its first weights.

    Raises:
        InputError: images that cannot be cut into squares; a head.
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
        # The gradient of torch's fused attention is slow on a processor.
        return ViTForImageClassification._from_config(ViTConfig(**shape, **labels), attn_implementation="eager")


def augmented(images: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S) as training shows them; what comes from beyond an edge is black."""
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
    **told: Any,
) -> Path:
    """Train, or go on training, into the folder `out`, which transformers loads; returns it.

    Args:
        data: training images.
        config: how.
        out: holds the model, and in `checkpoint/` what is needed to go on.
        validation: images whose accuracy is reported at each checkpoint.
        device: of the network.
        mixed_precision: bfloat16 autocast; where the processor computes in it natively if None.
        told: `checkpoint_every`, steps between checkpoints; `on_step`, called after each step; `on_validation`, called
            with the step and the measured values after each checkpoint.

    Raises:
        InputError: images that do not fit the architecture; `out` holds another run, or a damaged one; the loss is no
            longer finite.
    """
    if (out / "config.json").exists() and not (out / "checkpoint").exists():
        raise InputError(f"{out} holds a model that no training here made: choose another --out")
    place = torch.device(device)
    edge = resolution(config.architecture, data.images.shape[-1])

    def seen(images: Tensor, _: torch.Generator | None) -> Tensor:
        x = pixels(images, torch.arange(len(images)), place)
        x = torch.nn.functional.interpolate(x, size=edge, mode="bilinear") if edge > x.shape[-1] else x
        return x.contiguous(memory_format=torch.channels_last)  # convolutions are a fifth faster on a processor

    processor = image_processor(edge, resample=Resampling.BILINEAR)

    def save(averaged: Any) -> None:
        with quiet():
            averaged.save_pretrained(out)
            processor.save_pretrained(out)

    with writing(out):  # now, since it may not be allowed
        out.mkdir(parents=True, exist_ok=True)
    run = {"config": asdict(config), "data": data.fingerprint(), "class_names": list(data.class_names)}
    network = build_classifier(config, data).to(place)
    _fit(network, seen, save, run, data, config, out, validation, mixed_precision, **told)
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
    **told: Any,
) -> Path:
    """Train, or go on training, a head on the features of a diffusion model, which `Features` loads; see there.

    Args:
        data: training images, of the model's size.
        denoiser: the model, which stays as it is.
        model: what it is called, by which it will be found again.
        config: how; the architecture is one of `HEADS`.
        out: as in `train_supervised`, and so the others.
        validation: see there.
        mixed_precision: see there.
        told: see there.

    Raises:
        InputError: as there; a model without a null condition or without features.
    """
    if (out / FEATURES).exists() and not (out / "checkpoint").exists():
        raise InputError(f"{out} holds a model that no training here made: choose another --out")
    place = denoiser.device

    @torch.no_grad()
    def seen(images: Tensor, generator: torch.Generator | None) -> Tensor:
        latents = denoiser.encode(pixels(images, torch.arange(len(images)), place))
        noise = None if generator is None else torch.randn(latents.shape, generator=generator).to(place)
        return features(denoiser, latents, noise)

    if config.architecture not in HEADS:
        raise InputError(f"head {config.architecture!r} is not one of {', '.join(HEADS)}")
    channels = seen(data.images[:1], None).shape[1]
    with seeded(config.seed):
        head = build_head(config.architecture, channels, len(data.class_names)).to(place)

    def save(averaged: torch.nn.Module) -> None:
        Features(DiffusionFeatures(denoiser), averaged, data.class_names).save(
            out, model, config.architecture, channels
        )

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    run = {"config": {**asdict(config), "model": denoiser.fingerprint()}, "data": data.fingerprint()}
    run |= {"class_names": list(data.class_names)}
    _fit(head, seen, save, run, data, config, out, validation, mixed_precision, **told)
    return out


def _fit(
    network: Any,
    seen: Callable[[Tensor, torch.Generator | None], Tensor],
    save: Callable[[Any], None],
    run: dict[str, Any],
    data: TrainingImages,
    config: SupervisedConfig,
    out: Path,
    validation: TrainingImages | None,
    mixed_precision: bool | None,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_validation: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> None:
    """Minimise the cross-entropy of a network of what is seen of images."""
    place = next(network.parameters()).device
    autocast = native_bfloat16(place) if mixed_precision is None else mixed_precision
    averaged = copy.deepcopy(network).eval().requires_grad_(False)
    network.train().requires_grad_(True)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = batch_rows(step, len(data), config.batch_size, config.seed)
        images = augmented(data.images[rows], config.augment, generator_of(config.seed, 1, step))
        return seen(images, generator_of(config.seed, 3, step)), data.targets[rows].to(place)

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
            # The averaged weights need statistics of their own.
            update_bn((batch(step)[0] for step in range(_STATISTICS)), averaged)
        save(averaged)

    @torch.no_grad()
    def on_checkpoint(step: int) -> None:
        if validation is not None and len(validation):
            rows = torch.split(torch.arange(len(validation)), config.batch_size)
            chosen = [logits(averaged, seen(validation.images[part], None)).argmax(1).cpu() for part in rows]
            name = "accuracy" if validation.posteriors is None else "agreement"
            on_validation(step, {name: float((torch.cat(chosen) == validation.labels).float().mean())})

    fit(
        network, loss_at, config, num_steps(config, len(data)), out / "checkpoint", run, defaults={},
        save=save_average, outer=_OUTER, checkpoint_every=checkpoint_every, on_step=on_step,
        on_checkpoint=on_checkpoint,
    )  # fmt: skip
