"""Class-conditional diffusion from scratch: a UNet2DModel that diffusers itself loads back.

The data of step s is a function of (seed, s) alone, so that a run that was killed goes on with the very batches that
it would have seen.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin, UNet2DModel
from safetensors import SafetensorError
from torch import Tensor

from ..denoisers import load_denoiser
from ..denoisers.base import TIMES, scheduler_config
from ..denoisers.load import SETTINGS_FILE
from ..devices import native_bfloat16, one_line
from ..exceptions import InputError
from ..files import write_durably
from ..jobs import Job
from ..prediction import target, to_noise
from ..schedules import Schedule, add_noise, read_scheduler
from ..scoring import score
from ..strategies import Fixed
from .checkpoint import load_checkpoint, save_checkpoint
from .data import LabelledImages
from .muon import Muon

CHECKPOINT = "checkpoint"
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
OBJECTIVES = ("epsilon", "v_prediction", "sample", "flow")
WEIGHTINGS = ("output", "noise")
OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        objective: what the network predicts: one of `OBJECTIVES`; "flow" has its own schedule.
        beta_schedule: of diffusers' DDPMScheduler: one of `BETA_SCHEDULES`.
        times: how those of the schedule lie that are trained at: one of `TIMES`, evenly or, as Stable Diffusion 3 does,
            the middle ones more often.
        weighting: whose squared error is minimised: "output" for what the network returns, "noise" for the ε that
            follows from it, which is what a classifier compares.
        patch_size: p×p pixels are folded into channels before the network sees them.
        channels: width of each resolution level, high to low.
        layers: residual blocks per level.
        attention: self-attention in all blocks of the lowest resolution, not in the middle one alone.
        dropout: in the residual blocks.
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: one of `OPTIMIZERS`; "muon" is for the kernels and matrices between the first and last convolution.
        learning_rate: peak of the cosine schedule.
        warmup: steps of linear warm-up.
        weight_decay: of the optimizer, as a share of the learning rate.
        ema: decay of the exponential moving average that is saved.
        label_dropout: share of images shown with the null class, which trains an unconditional row.
        flip: mirror images at random.
        start: model whose weights training starts from, as `load_denoiser` takes it; fresh ones if empty.
        seed: of initial weights, data order, noise, times and dropout.

    Raises:
        InputError: a value cannot be used.
    """

    objective: str = "v_prediction"
    beta_schedule: str = "linear"
    times: str = "even"
    weighting: str = "output"
    patch_size: int = 1
    channels: tuple[int, ...] = (64, 128)
    layers: int = 2
    attention: bool = False
    dropout: float = 0.0
    epochs: float = 10.0
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.01
    ema: float = 0.999
    label_dropout: float = 0.1
    flip: bool = False
    start: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "objective": OBJECTIVES,
            "beta_schedule": BETA_SCHEDULES,
            "times": TIMES,
            "weighting": WEIGHTINGS,
            "optimizer": OPTIMIZERS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}")
        requirements = {
            "patch_size": (self.patch_size >= 1, "at least 1"),
            "channels": (len(self.channels) > 0 and min(self.channels) >= 1, "one or more widths of at least 1"),
            "layers": (self.layers >= 1, "at least 1"),
            "dropout": (0 <= self.dropout < 1, "at least 0 and below 1"),
            "epochs": (0 < self.epochs < math.inf, "above 0"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "warmup": (self.warmup >= 0, "at least 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "ema": (0 <= self.ema < 1, "at least 0 and below 1"),
            "label_dropout": (0 <= self.label_dropout < 1, "at least 0 and below 1"),
            "seed": (0 <= self.seed < 2**63, "at least 0 and below 2⁶³"),
        }
        for name, (fulfilled, requirement) in requirements.items():
            if not fulfilled:
                raise InputError(f"{name} must be {requirement}; got {getattr(self, name)}")

    def num_steps(self, num_images: int) -> int:
        """Steps in all."""
        return max(1, math.ceil(self.epochs * num_images / self.batch_size))


@dataclass(frozen=True)
class Progress:
    """State of a run after a step."""

    step: int
    num_steps: int
    loss: float


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
    with _seeded(config.seed):
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
    if config.objective == "flow":
        return unet, FlowMatchEulerDiscreteScheduler()
    return unet, DDPMScheduler(beta_schedule=config.beta_schedule, prediction_type=config.objective)


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


def build_optimizer(unet: UNet2DModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Optimizer of a network that is on its device."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (0.9, 0.99), "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        return torch.optim.AdamW(unet.parameters(), fused=True, **settings)
    # Muon is meant for maps between hidden layers: not for the first and last one, and not for embedding tables.
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in unet.named_parameters():
        inner = parameter.ndim > 1 and not name.startswith(("conv_in.", "conv_out.", "class_embedding."))
        groups[inner].append(parameter)
    return Muon([{"params": p, "orthogonal": inner} for inner, p in groups.items()], fused=True, **settings)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators, which modules draw weights and dropout from, seeded for a while and then as before."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*key))


@lru_cache(maxsize=2)
def _order(num_images: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_images, generator=_generator(seed, 0, epoch))


def batch_rows(step: int, num_images: int, config: TrainConfig) -> Tensor:
    """Image indices (batch_size,) of a step: permutations laid end to end, one an epoch."""
    positions = range(step * config.batch_size, (step + 1) * config.batch_size)
    return torch.stack([_order(num_images, config.seed, p // num_images)[p % num_images] for p in positions])


def _batch(
    step: int, data: LabelledImages, config: TrainConfig, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x and ε (B, *), t and class labels (B,) of a step."""
    generator = _generator(config.seed, 1, step)
    rows = batch_rows(step, len(data), config)
    images, labels = data.images[rows], data.labels[rows].clone()
    b = len(rows)
    if config.flip:
        mirrored = torch.rand(b, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    labels[torch.rand(b, generator=generator) < config.label_dropout] = len(data.class_names)
    # One time in each B-th of the schedule: the loss of a batch varies less than with independent times.
    u = (torch.randperm(b, generator=generator) + torch.rand(b, generator=generator)) / b
    u = u if config.times == "even" else torch.special.ndtri(u).sigmoid()
    t = schedule.timesteps(u.clamp(max=1 - 2**-24))  # the sum may have been rounded up to 1
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
    weights = dict(unet.named_parameters())
    ema = {name: p.detach().clone() for name, p in weights.items()}
    optimizer = build_optimizer(unet, config)
    run = {"config": asdict(config), "data": data.fingerprint(), "class_names": list(data.class_names)}
    step = load_checkpoint(out / CHECKPOINT, run, asdict(TrainConfig()), weights, ema, optimizer)
    if step == 0:
        with _writing(out):  # now, since it may not be allowed
            out.mkdir(parents=True, exist_ok=True)
            settings = {"class_names": data.class_names, "patch_size": config.patch_size, "times": config.times}
            write_durably(out / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    autocast = native_bfloat16(torch.device(device)) if mixed_precision is None else mixed_precision
    network = torch.compile(unet, dynamic=False) if compile_network else unet
    num_steps = config.num_steps(len(data))

    while step < num_steps:
        x, noise, t, labels = _batch(step, data, config, schedule)
        alpha, sigma = schedule(t)
        noisy = add_noise(x, noise, alpha, sigma).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, num_steps, config)
        dropout = _seeded(_seed(config.seed, 2, step)) if config.dropout else nullcontext()
        with dropout, torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            output = network(noisy, t.to(device), class_labels=labels.to(device)).sample
        if config.weighting == "noise":
            output = to_noise(output, noisy, alpha.to(device), sigma.to(device), config.objective)
            goal = noise
        else:
            goal = target(x, noise, alpha, sigma, config.objective)
        loss = (output.float() - goal.to(device)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        if not math.isfinite(value := loss.item()) or not bool(norm.isfinite()):
            raise InputError(
                f"the loss is {value} and its gradient {float(norm)} at step {step + 1}: start again in another folder "
                "with a lower learning rate"
            )
        optimizer.step()
        with torch.no_grad():
            # A young average forgets its random start faster.
            decay = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.values()), [p.detach() for p in weights.values()], 1 - decay)
        step += 1
        on_step(Progress(step, num_steps, value))
        if step % checkpoint_every == 0 or step == num_steps:
            with _writing(out):
                _save_model(out, unet, ema, scheduler)
                save_checkpoint(out / CHECKPOINT, run, step, weights, ema, optimizer)
            if validation is not None and len(validation):
                on_validation(step, validate(out, validation, device))
    return out


def learning_rate(step: int, num_steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    warmup = min((step + 1) / max(1, config.warmup), 1.0)
    return config.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))


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


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as e:
        raise InputError(f"{out} cannot be written to as the folder of a model: {one_line(e)}") from e


def _save_model(out: Path, unet: UNet2DModel, ema: dict[str, Tensor], scheduler: SchedulerMixin) -> None:
    """The averaged weights as a diffusers folder. The network that is being trained stays as it is."""
    averaged = copy.deepcopy(unet)
    averaged.load_state_dict(ema)
    DDPMPipeline(averaged, scheduler).save_pretrained(out, safe_serialization=True)
