"""Fine-tune a model by LoRA, on the denoising loss or on the joint objective.

Here captions take the role that classes have in the joint objective. Negatives are the captions of other images, or, if
the data have some, false captions of the image itself. For class-conditional models, captions are class names.

Shape legend: B images of a batch, M captions of each, the true one first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import cast_training_params
from torch import Tensor

from ..denoisers import Conditioning, Denoiser
from ..denoisers.addons import check_peft
from ..denoisers.class_conditional import ClassConditional
from ..denoisers.class_lora import adapt_network, save_adapter
from ..denoisers.devices import native_bfloat16
from ..diffusion.prediction import split_variance
from ..errors import InputError
from .checkpoint import CHECKPOINT, Checkpoint, check_out
from .denoising import OBJECTIVES, Noised, TrainConfig, draw_times
from .images import TrainingCaptions
from .joint import NetworkWithScale, cross_entropy, draw_rivals
from .latents import encode_all
from .loop import Callbacks, Progress, batch_rows, fit, generator_of, num_steps, seeded, writing

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Names of the adapted layers of a text-to-image model: attention."""
_KEPT = 1024
"""Largest number of captions that are encoded once. If there are more, those of each step are encoded."""


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
    """Train LoRA weights into the folder `out`, or resume. `load_denoiser(…, loras=[out])` adds them to the model.

    Args:
        data: images of the model's size with captions, which for class-conditional models are class names.
        denoiser: the model. It ends with the last, not the averaged, LoRA weights in its network.
        config: settings. Objective and times are the model's own. With `joint`, the loss contrasts the true caption
            with `rivals` negatives: the image's own false captions, else different captions of the data. 0 stands for
            all.
        out: folder of the LoRA weights. Its subfolder `checkpoint/` holds what is needed to resume.
        rank: rank of the matrices.
        mixed_precision: whether to autocast to bfloat16. Default: if the device computes in bfloat16 natively.
        checkpoint_every: steps between checkpoints; see `loop.Callbacks` for the default.
        on_step: called after each step.
        on_stage: called at the start of each stage, with its name, its number of steps, and the images per step.

    Raises:
        InputError: peft is missing, the model takes no LoRA weights, or settings do not fit; a caption is too long;
            `out` holds another run, or a damaged one; the loss is no longer finite.
    """
    _check_trainable(denoiser, out, rank)
    network, device = denoiser.network, denoiser.device
    config = replace(config, objective=denoiser.prediction_type, times=denoiser.times)
    captions = IndexedCaptions.of(data)
    if config.joint and len(captions.names) < 2:
        raise InputError("all captions are alike: there is nothing to tell apart, which `joint` was to train")
    autocast = native_bfloat16(device) if mixed_precision is None else mixed_precision
    model = denoiser.fingerprint()
    with seeded(config.seed):
        _adapt(denoiser, rank)
    if device.type == "cpu" and isinstance(network, UNet2DConditionModel):
        network.set_attn_processor(AttnProcessor())  # the gradient of torch's fused attention is slow on a CPU
    callbacks = Callbacks(checkpoint_every, on_step, on_stage=on_stage)
    latents = encode_all(data.images, denoiser.encode, device, False, callbacks, batch_size=16)
    kept = denoiser.condition(captions.names) if len(captions.names) <= _KEPT else None
    joint = NetworkWithScale(network).to(device)
    settings = {**asdict(config), "rank": rank, "model": model}
    run = {"config": settings, "data": data.fingerprint(), "class_names": []}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    steps = num_steps(config, len(data))
    on_stage("fine-tuning", steps, config.batch_size)
    fit(
        joint if config.joint else network,
        _Loss(denoiser, config, captions, latents, kept, joint.log_scale, autocast),
        config,
        steps,
        Checkpoint(out / CHECKPOINT, run),
        save=lambda ema: _save(denoiser, ema, out),
        callbacks=callbacks,
    )
    return out


def _check_trainable(denoiser: Denoiser, out: Path, rank: int) -> None:
    check_peft()
    pipeline = getattr(denoiser, "pipeline", None)
    takes_lora = isinstance(denoiser, ClassConditional) or hasattr(pipeline, "save_lora_weights")
    if not takes_lora or denoiser.prediction_type not in OBJECTIVES:
        raise InputError(f"a {type(pipeline or denoiser).__name__} is not fine-tuned here")
    if denoiser.dtype == torch.float16:
        raise InputError("gradients vanish in float16: fine-tune in bfloat16, or in float32")
    check_out(out, "*.safetensors", what="weights that no fine-tuning here made")
    if rank < 1:
        raise InputError(f"the rank must be at least 1; got {rank}")


@dataclass(frozen=True)
class IndexedCaptions:
    """Captions of training images.

    Args:
        names: different captions.
        labels: (N,), index of the caption of each image.
        contrasts: indices of the false captions of each image. Empty if the data have none.
    """

    names: list[str]
    labels: Tensor
    contrasts: list[Tensor]

    @classmethod
    def of(cls, data: TrainingCaptions) -> IndexedCaptions:
        """Number the captions of training images."""
        names = sorted({*data.captions, *(c for own in data.contrasts for c in own)})
        number = {name: i for i, name in enumerate(names)}
        labels = torch.tensor([number[caption] for caption in data.captions])
        return cls(names, labels, [torch.tensor([number[c] for c in own]) for own in data.contrasts])

    def draw_negatives(self, rows: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw false captions of images.

        Returns:
            False captions (B, M - 1) of the images (B,), which columns (B, M) to ignore, and the number of captions of
            all or of each image (B,). Images with fewer false captions than others repeat one, which counts once.
        """
        if not self.contrasts:
            drawn = draw_rivals(self.labels[rows], len(self.names), count, generator)
            absent = torch.zeros(len(rows), drawn.shape[1] + 1, dtype=torch.bool)
            return drawn, absent, torch.tensor(len(self.names))
        own = [self.contrasts[i] for i in rows.tolist()]
        some = [c[torch.randperm(len(c), generator=generator)[: count or len(c)]] for c in own]
        lengths = torch.tensor([len(c) for c in some])
        columns = torch.arange(int(lengths.max()))
        absent = torch.cat([torch.zeros(len(own), 1, dtype=torch.bool), columns >= lengths[:, None]], dim=1)
        drawn = torch.stack([c[columns.clamp(max=len(c) - 1)] for c in some])
        return drawn, absent, torch.tensor([len(c) + 1 for c in own])


@dataclass(frozen=True)
class _Loss:
    """Training loss as a function of the step.

    Args:
        denoiser: the model, with LoRA matrices.
        config: settings.
        captions: captions of the images.
        latents: (N, *), float16, on the CPU.
        kept: encodings of all captions. None to encode those of each step.
        log_scale: logarithm of the learned scale of the joint objective.
        autocast: whether to autocast to bfloat16.
    """

    denoiser: Denoiser
    config: TrainConfig
    captions: IndexedCaptions
    latents: Tensor
    kept: Conditioning | None
    log_scale: Tensor
    autocast: bool

    def __call__(self, step: int) -> Tensor:
        """Return the loss of a step."""
        config, denoiser, names = self.config, self.denoiser, self.captions.names
        device, schedule = denoiser.device, denoiser.schedule
        generator = generator_of(config.seed, 1, step)
        rows = batch_rows(step, len(self.latents), config.batch_size, config.seed)
        t = draw_times(len(rows), config, schedule, generator)
        x = self.latents[rows].float()
        batch = Noised(x, torch.randn(x.shape, generator=generator), t, schedule, device)
        shown = self.captions.labels[rows, None]
        if config.joint:
            negatives, absent, num_captions = self.captions.draw_negatives(rows, config.rivals, generator)
            shown = torch.cat([shown, negatives], dim=1)
        b, m = shown.shape
        distinct, index = torch.unique(shown, return_inverse=True)
        prompts = denoiser.condition([names[i] for i in distinct]) if self.kept is None else self.kept[distinct]
        latent_index = torch.arange(b).repeat_interleave(m)

        def predict(noisy: Tensor, t: Tensor) -> Tensor:
            each = latent_index.to(device)
            with denoiser.prefix.shared(latent_index, device):
                output = denoiser.forward(noisy[each].to(denoiser.dtype), t[each], prompts[index.flatten()].to(device))
            return split_variance(output, x.shape[1])[0]

        output = batch.predicted_by(predict, step, config, self.autocast).view(b, m, *x.shape[1:])
        loss = batch.loss(output[:, 0], config)
        if config.joint:
            errors = batch.errors(output, config)
            surprise = cross_entropy(errors, self.log_scale.exp(), num_captions.to(device), absent.to(device))
            loss = loss + config.joint * surprise.mean()
        return loss


def _save(denoiser: Denoiser, ema: dict[str, Tensor], out: Path) -> None:
    from peft import get_peft_model_state_dict

    network, pipeline = denoiser.network, getattr(denoiser, "pipeline", None)
    weights = {name.removeprefix("network."): p for name, p in ema.items()}
    if pipeline is None:
        save_adapter(network, weights, out)
        return
    part = "unet" if "unet" in pipeline.components else "transformer"
    pipeline.save_lora_weights(out, **{f"{part}_lora_layers": get_peft_model_state_dict(network, weights)})


def _adapt(denoiser: Denoiser, rank: int) -> None:
    from peft import LoraConfig

    network: Any = denoiser.network
    if isinstance(denoiser, ClassConditional):
        adapt_network(network, rank)
    else:
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LAYERS)))
    cast_training_params(network, torch.float32)
