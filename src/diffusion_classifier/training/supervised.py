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
from torch import Tensor
from torch.optim.swa_utils import update_bn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from ..denoisers.load import quiet
from ..devices import native_bfloat16
from ..exceptions import InputError
from .data import LabelledImages
from .latents import pixels
from .loop import OPTIMIZERS, Progress, batch_rows, fit, generator_of, num_steps, seed_of, seeded, writing

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
        architecture: one of `ARCHITECTURES`.
        augment: one of `AUGMENTATIONS`: mirrored at random ("flips"), and moved by up to an eighth as well ("usual").
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: one of `loop.OPTIMIZERS`.
        learning_rate: peak of the cosine schedule.
        warmup: steps of linear warm-up.
        weight_decay: of the optimizer, as a share of the learning rate.
        ema: decay of the exponential moving average that is saved.
        seed: of initial weights, data order, augmentation and dropout.

    Raises:
        InputError: a value cannot be used.
    """

    architecture: str = "resnet-18"
    augment: str = "usual"
    epochs: float = 10.0
    batch_size: int = 64
    optimizer: str = "muon"
    learning_rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.01
    ema: float = 0.999
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {"architecture": ARCHITECTURES, "augment": AUGMENTATIONS, "optimizer": OPTIMIZERS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0; got {getattr(self, name)}")


def resolution(architecture: str, size: int) -> int:
    """Edge of the images that a network sees: residual networks make theirs four times smaller at once."""
    return 4 * size if architecture in _RESNETS and size <= 64 else size


def build_classifier(config: SupervisedConfig, data: LabelledImages) -> Any:
    """Network with its first weights.

    Raises:
        InputError: images that cannot be cut into squares.
    """
    size = data.images.shape[-1]
    names = dict(enumerate(data.class_names))
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
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
    data: LabelledImages,
    config: SupervisedConfig,
    out: Path,
    *,
    validation: LabelledImages | None = None,
    device: str = "cpu",
    mixed_precision: bool | None = None,
    checkpoint_every: int = 1000,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_validation: Callable[[int, dict[str, float]], None] = lambda *_: None,
) -> Path:
    """Train, or go on training, into the folder `out`, which transformers loads; returns it.

    Args:
        data: training images.
        config: how.
        out: holds the model, and in `checkpoint/` what is needed to go on.
        validation: images whose accuracy is reported at each checkpoint.
        device: of the network.
        mixed_precision: bfloat16 autocast; where the processor computes in it natively if None.
        checkpoint_every: steps between checkpoints.
        on_step: called after each step.
        on_validation: called with the step and the measured values after each checkpoint.

    Raises:
        InputError: images that do not fit the architecture; `out` holds another run, or a damaged one; the loss is no
            longer finite.
    """
    if (out / "config.json").exists() and not (out / "checkpoint").exists():
        raise InputError(f"{out} holds a model that no training here made: choose another --out")
    place = torch.device(device)
    autocast = native_bfloat16(place) if mixed_precision is None else mixed_precision
    network = build_classifier(config, data).to(place).train()
    averaged = copy.deepcopy(network).eval().requires_grad_(False)
    edge = resolution(config.architecture, data.images.shape[-1])

    def seen(images: Tensor) -> Tensor:
        x = pixels(images, torch.arange(len(images)), place)
        return torch.nn.functional.interpolate(x, size=edge, mode="bilinear") if edge > x.shape[-1] else x

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rows = batch_rows(step, len(data), config.batch_size, config.seed)
        return augmented(data.images[rows], config.augment, generator_of(config.seed, 1, step)), data.labels[rows]

    def logits(network: Any, images: Tensor) -> Tensor:
        with torch.autocast(place.type, torch.bfloat16, enabled=autocast):
            return network(pixel_values=seen(images)).logits.float()  # type: ignore[no-any-return]

    def loss_at(step: int) -> Tensor:
        images, labels = batch(step)
        with seeded(seed_of(config.seed, 2, step)):
            return torch.nn.functional.cross_entropy(logits(network, images), labels.to(place))

    def save(ema: dict[str, Tensor]) -> None:
        averaged.load_state_dict(ema, strict=False)
        with torch.autocast(place.type, torch.bfloat16, enabled=autocast):
            # The averaged weights need statistics of their own.
            update_bn((seen(batch(step)[0]) for step in range(_STATISTICS)), averaged)
        with quiet():
            averaged.save_pretrained(out)

    @torch.no_grad()
    def on_checkpoint(step: int) -> None:
        if validation is not None and len(validation):
            rows = torch.split(torch.arange(len(validation)), 256)
            chosen = torch.cat([logits(averaged, validation.images[part]) for part in rows]).argmax(1).cpu()
            on_validation(step, {"accuracy": float((chosen == validation.labels).float().mean())})

    with writing(out):
        ViTImageProcessorPil(
            size={"height": edge, "width": edge}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ).save_pretrained(out)
    run = {"config": asdict(config), "data": data.fingerprint(), "class_names": list(data.class_names)}
    fit(
        network, loss_at, config, num_steps(config, len(data)), out / "checkpoint", run, defaults={}, save=save,
        outer=_OUTER, checkpoint_every=checkpoint_every, on_step=on_step, on_checkpoint=on_checkpoint,
    )  # fmt: skip
    return out
