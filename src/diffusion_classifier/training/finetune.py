"""LoRA: a model learns a few small matrices, to denoise, and to tell captions or classes apart.

What are classes to the joint objective elsewhere are captions here: those of the other images, or, where the data have
some, false ones of the image itself. The captions of a model of classes are their names.

Shape legend: B images of a batch, M captions of each, the true one first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import cast_training_params
from torch import Tensor

from ..denoisers import Denoiser
from ..denoisers.addons import check_peft
from ..denoisers.class_conditional import ClassConditional
from ..denoisers.class_lora import adapt_network, save_adapter
from ..denoisers.devices import native_bfloat16
from ..diffusion.prediction import split_variance
from ..errors import InputError
from .denoising import OBJECTIVES, Noised, TrainConfig, draw_times
from .images import TrainingCaptions
from .joint import NetworkWithScale, cross_entropy, draw_rivals
from .latents import encode_all
from .loop import Progress, batch_rows, fit, generator_of, num_steps, seeded, writing

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Names of the layers that are adapted in a model that reads text: those of attention."""
_KEPT = 1024
"""Captions up to which all are encoded once; of more, those of each step."""


def finetune(
    data: TrainingCaptions,
    denoiser: Denoiser,
    config: TrainConfig,
    out: Path,
    *,
    rank: int = 8,
    mixed_precision: bool | None = None,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_stage: Callable[[str, int, int], None] = lambda *_: None,
) -> Path:
    """Train, or go on training, LoRA weights into the folder `out`, which `load_denoiser(…, loras=[out])` adds.

    Args:
        data: images of the model's size, with captions, or names of classes that the model knows.
        denoiser: of the model. It ends with the last, not the averaged, LoRA weights upon its own.
        config: how; objective and times are the model's own. With `joint`, the true caption is told from `rivals`
            false ones: the image's own, or else different captions of the data, all where `rivals` is 0.
        out: holds the LoRA weights, and in `checkpoint/` what is needed to go on.
        rank: of the matrices.
        mixed_precision: bfloat16 autocast; where the processor computes in it natively if None.
        checkpoint_every: steps between checkpoints; see `loop.fit` for None.
        on_step: called after each step.
        on_stage: called with the name of each stage, its number of steps, and of images a step.

    Raises:
        InputError: peft is missing, the model takes no LoRA weights, or settings do not fit; a caption is too long;
            `out` holds another run, or a damaged one; the loss is no longer finite.
    """
    check_peft()
    network, device, pipeline = denoiser.network, denoiser.device, getattr(denoiser, "pipeline", None)
    takes_lora = isinstance(denoiser, ClassConditional) or hasattr(pipeline, "save_lora_weights")
    if not takes_lora or denoiser.prediction_type not in OBJECTIVES:
        raise InputError(f"a {type(pipeline or denoiser).__name__} is not fine-tuned here")
    if denoiser.dtype == torch.float16:
        raise InputError("gradients vanish in float16: fine-tune in bfloat16, or in float32")
    if any(out.glob("*.safetensors")) and not (out / "checkpoint").exists():
        raise InputError(f"{out} holds weights that no fine-tuning here made: choose another --out")
    if rank < 1:
        raise InputError(f"the rank must be at least 1; got {rank}")
    config = replace(config, objective=denoiser.prediction_type, times=denoiser.times)
    names, labels, contrasts = _indexed(data)
    if config.joint and len(names) < 2:
        raise InputError("all captions are alike: there is nothing to tell apart, which `joint` was to train")
    autocast = native_bfloat16(device) if mixed_precision is None else mixed_precision
    model = denoiser.fingerprint()
    with seeded(config.seed):
        _adapt(denoiser, rank)
    if device.type == "cpu" and isinstance(network, UNet2DConditionModel):
        network.set_attn_processor(AttnProcessor())  # the gradient of torch's fused attention is slow here
    latents = encode_all(data.images, denoiser.encode, device, False, on_stage, on_step, batch_size=16)
    kept = denoiser.condition(names) if len(names) <= _KEPT else None
    joint = NetworkWithScale(network).to(device)
    settings = {**asdict(config), "rank": rank, "model": model}
    run = {"config": settings, "data": data.fingerprint(), "class_names": []}

    def loss_at(step: int) -> Tensor:
        generator = generator_of(config.seed, 1, step)
        rows = batch_rows(step, len(data), config.batch_size, config.seed)
        t = draw_times(len(rows), config, denoiser.schedule, generator)
        x = latents[rows].float()
        batch = Noised(x, torch.randn(x.shape, generator=generator), t, denoiser.schedule, device)
        shown = labels[rows, None]
        if config.joint:
            rivals, absent, num_captions = _rivals(rows, labels, contrasts, len(names), config.rivals, generator)
            shown = torch.cat([shown, rivals], dim=1)
        b, m = shown.shape
        distinct, index = torch.unique(shown, return_inverse=True)
        prompts = denoiser.condition([names[i] for i in distinct]) if kept is None else kept[distinct]
        latent_index = torch.arange(b).repeat_interleave(m)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            each = latent_index.to(device)
            with denoiser.prefix.shared(latent_index, device):
                output = denoiser.forward(noisy[each].to(denoiser.dtype), t[each], prompts[index.flatten()].to(device))
            return split_variance(output, x.shape[1])[0]

        output = batch.predicted_by(predict, step, config, autocast).view(b, m, *x.shape[1:])
        loss = batch.loss(output[:, 0], config)
        if config.joint:
            errors = batch.errors(output, config)
            surprise = cross_entropy(errors, joint.log_scale.exp(), num_captions.to(device), absent.to(device))
            loss = loss + config.joint * surprise.mean()
        return loss

    def save(ema: dict[str, Tensor]) -> None:
        from peft import get_peft_model_state_dict

        weights = {name.removeprefix("network."): p for name, p in ema.items()}
        if pipeline is None:
            save_adapter(network, weights, out)
            return
        part = "unet" if "unet" in pipeline.components else "transformer"
        pipeline.save_lora_weights(out, **{f"{part}_lora_layers": get_peft_model_state_dict(network, weights)})

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    steps = num_steps(config, len(data))
    on_stage("fine-tuning", steps, config.batch_size)
    fit(
        joint if config.joint else network, loss_at, config, steps, out / "checkpoint", run,
        defaults={}, save=save, checkpoint_every=checkpoint_every, on_step=on_step,
    )  # fmt: skip
    return out


def _adapt(denoiser: Denoiser, rank: int) -> None:
    from peft import LoraConfig

    network: Any = denoiser.network
    if isinstance(denoiser, ClassConditional):
        adapt_network(network, rank)
    else:
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LAYERS)))
    cast_training_params(network, torch.float32)


def _indexed(data: TrainingCaptions) -> tuple[list[str], Tensor, list[Tensor]]:
    """Different captions, which of them is that of each image (N,), and which are false of it."""
    names = sorted({*data.captions, *(c for own in data.contrasts for c in own)})
    number = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([number[caption] for caption in data.captions])
    return names, labels, [torch.tensor([number[c] for c in own]) for own in data.contrasts]


def _rivals(
    rows: Tensor, labels: Tensor, contrasts: list[Tensor], num_captions: int, rivals: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """False captions (B, M - 1) of the images (B,); of which columns (B, M) do not count; how many captions there are.

    Images with fewer false captions than others have one of theirs several times, which counts once.
    """
    if not contrasts:
        drawn = draw_rivals(labels[rows], num_captions, rivals, generator)
        return drawn, torch.zeros(len(rows), drawn.shape[1] + 1, dtype=torch.bool), torch.tensor(num_captions)
    own = [contrasts[i] for i in rows.tolist()]
    some = [c[torch.randperm(len(c), generator=generator)[: rivals or len(c)]] for c in own]
    lengths = torch.tensor([len(c) for c in some])
    columns = torch.arange(int(lengths.max()))
    absent = torch.cat([torch.zeros(len(own), 1, dtype=torch.bool), columns >= lengths[:, None]], dim=1)
    drawn = torch.stack([c[columns.clamp(max=len(c) - 1)] for c in some])
    return drawn, absent, torch.tensor([len(c) + 1 for c in own])
