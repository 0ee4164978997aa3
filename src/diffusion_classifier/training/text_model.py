"""Train text-to-image latent diffusion models from scratch: a StableDiffusionPipeline that diffusers loads.

There are three stages, as for Stable Diffusion 2: a contrastive model of images and captions, whose text tower is then
frozen and encodes the prompts; an autoencoder; and the diffusion model on its latents. The contrastive and the
generative classifier therefore share one text encoder.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from ..data.prompts import words_of
from ..denoisers import autoencoder
from ..denoisers.base import fingerprint, scheduler_config, without_advice
from ..denoisers.devices import native_bfloat16, one_line
from ..denoisers.load import quiet
from ..denoisers.model_settings import SETTINGS_FILE
from ..denoisers.networks import FAULTS, check_files, load_network
from ..diffusion.schedules import read_scheduler
from ..errors import InputError
from ..files import write_durably
from .checkpoint import CHECKPOINT, Checkpoint, check_out
from .denoising import Noised, TrainConfig, build_scheduler, draw_times, load_start
from .images import TrainingCaptions
from .latents import BATCH, encode_all, image_processor, pixels
from .loop import NUM_EPOCHS, Callbacks, Progress, batch_rows, fit, generator_of, num_steps, seed_of, seeded, writing
from .text_networks import (
    Latents,
    Towers,
    autoencoder_loss,
    build_autoencoder,
    build_tokenizer,
    build_towers,
    build_unet,
    contrastive_loss,
    default_patch_size,
    halved,
    text_encoder_of,
    tokens_of,
)

CONTRASTIVE = "contrastive"
"""Subfolder of the contrastive model in the folder of the pipeline."""
_OUTER = ("conv_in.", "conv_out.")

_Module = TypeVar("_Module", bound=torch.nn.Module)


def train_text(
    data: TrainingCaptions,
    config: TrainConfig,
    out: Path,
    *,
    towers: Towers | Path,
    latents: Latents | Path,
    device: str = "cpu",
    mixed_precision: bool | None = None,
    compile_network: bool = False,
    checkpoint_every: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_stage: Callable[[str, int, int], None] = lambda *_: None,
) -> Path:
    """Train into the folder `out`, or resume training there. Returns the folder, which `StableDiffusionPipeline` loads.

    Args:
        data: training images.
        config: settings of the diffusion model. `label_dropout` is the share of images with an empty caption.
        out: folder of the pipeline. Its subfolder `contrastive/` holds the contrastive model, and `checkpoint/` what is
            needed to resume.
        towers: settings of the contrastive model, or the folder of an existing one.
        latents: settings of the autoencoder, or the folder of an existing one.
        device: device of the networks.
        mixed_precision: whether to autocast to bfloat16. Default: if the device computes in bfloat16 natively.
        compile_network: whether to use torch.compile for the U-Net.
        checkpoint_every: steps between checkpoints; see `loop.Callbacks` for the default.
        on_step: called after each step.
        on_stage: called at the start of each stage, with its name, its number of steps, and the images per step.

    Raises:
        InputError: settings that do not fit the images; a caption is too long; `out` holds another run, or a damaged
            one; the loss is no longer finite.
    """
    if config.flip or config.patch_size != 1 or config.head or config.joint:
        raise InputError(
            "flip (left and right matter), patch_size, head and joint are not for models that read captions"
        )
    if config.start and not (isinstance(towers, Path) and isinstance(latents, Path)):
        raise InputError(
            f"{config.start} knows captions and latents of its own: to start from it, name the folders of its "
            "contrastive model and its autoencoder"
        )
    check_out(out, "model_index.json", in_stages=True)
    place = torch.device(device)
    autocast = native_bfloat16(place) if mixed_precision is None else mixed_precision
    callbacks = Callbacks(checkpoint_every, on_step, on_stage=on_stage)
    stages = _Stages(data, config, out, place, autocast, callbacks)
    size = data.images.shape[-1]
    vae: AutoencoderKL | None = None
    if isinstance(latents, Path):
        vae = _load(latents, "diffusers", "AutoencoderKL", "an autoencoder")
        channels = vae.config.block_out_channels
    else:
        channels = latents.channels
    halved(halved(size, channels, "images"), config.channels, "latents")  # before anything takes long
    if isinstance(towers, Towers):
        patch = towers.patch_size or default_patch_size(size)
        if size % patch:
            raise InputError(
                f"images of {size} pixels cannot be cut into squares of {patch}: choose another patch_size of the "
                "contrastive model"
            )
        towers = replace(towers, patch_size=patch)
    clip, tokenizer = _load_towers(towers) if isinstance(towers, Path) else stages.towers(towers)
    if isinstance(latents, Latents):
        vae = stages.latents(latents)
    stages.diffusion(clip, tokenizer, vae, compile_network)
    return out


@dataclass(frozen=True)
class _Stages:
    data: TrainingCaptions
    config: TrainConfig
    out: Path
    device: torch.device
    autocast: bool
    callbacks: Callbacks

    @cached_property
    def _fingerprint(self) -> str:
        return self.data.fingerprint()

    def _pixels(self, rows: Tensor) -> Tensor:
        return pixels(self.data.images, rows, self.device)

    def _fit(
        self,
        stage: str,
        module: _Module,
        stage_settings: Towers | Latents | TrainConfig,
        loss_at: Callable[[int], Tensor],
        save: Callable[[_Module], None],
        settings: Mapping[str, Any],
        outer: Sequence[str] = (),
    ) -> _Module:
        """Train a module, and return it with its averaged weights."""
        default = 1 if isinstance(stage_settings, Latents) else NUM_EPOCHS  # one epoch is enough for an autoencoder
        steps = num_steps(stage_settings, len(self.data), default)
        self.callbacks.on_stage(stage, steps, stage_settings.batch_size)
        averaged = copy.deepcopy(module).eval().requires_grad_(False)

        def save_average(ema: dict[str, Tensor]) -> None:
            averaged.load_state_dict(ema, strict=False)  # buffers are not averaged
            with quiet():
                save(averaged)

        run = {"config": dict(settings), "data": self._fingerprint, "class_names": []}
        ema = fit(
            module,
            loss_at,
            stage_settings,
            steps,
            Checkpoint(self.out / CHECKPOINT / stage, run, asdict(type(stage_settings)())),
            save_average,
            outer=outer,
            callbacks=self.callbacks,
            stage=stage,
        )
        averaged.load_state_dict(ema, strict=False)
        return averaged

    def towers(self, towers: Towers) -> tuple[CLIPModel, CLIPTokenizer]:
        """Train the contrastive model."""
        size = self.data.images.shape[-1]
        tokenizer = build_tokenizer(self.data.captions, towers.vocabulary, towers.max_tokens)
        with seeded(seed_of(self.config.seed, 10)):
            clip = build_towers(towers, tokenizer, size).to(self.device).train()
        if self.device.type == "cpu":
            clip.set_attn_implementation("eager")  # the gradient of torch's fused attention is slow on a CPU
        tokens = tokens_of(tokenizer, self.data.captions)
        with writing(self.out):  # now, in case the folder cannot be written
            (self.out / CONTRASTIVE).mkdir(parents=True, exist_ok=True)
        processor = image_processor(size)

        def save(module: CLIPModel) -> None:
            for part in (tokenizer, processor, module):
                part.save_pretrained(self.out / CONTRASTIVE)

        def loss_at(step: int) -> Tensor:
            rows = batch_rows(step, len(self.data), towers.batch_size, seed_of(self.config.seed, 11))
            ids = tokens[rows].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                output = clip(input_ids=ids, pixel_values=self._pixels(rows))
            return contrastive_loss(output.logits_per_image.float(), ids)

        settings = {**asdict(towers), "seed": self.config.seed}
        trained = self._fit(CONTRASTIVE, clip, towers, loss_at, save, settings)
        return trained, tokenizer

    def latents(self, latents: Latents) -> AutoencoderKL:
        """Train the autoencoder, with the scaling factor at which its latents have a variance of 1."""
        size = self.data.images.shape[-1]
        with seeded(seed_of(self.config.seed, 20)):
            vae = build_autoencoder(latents, size).to(self.device).train()
        edge = halved(size, latents.channels, "images")

        def loss_at(step: int) -> Tensor:
            rows = batch_rows(step, len(self.data), latents.batch_size, seed_of(self.config.seed, 21))
            shape = (len(rows), latents.latent_channels, edge, edge)
            noise = torch.randn(shape, generator=generator_of(self.config.seed, 22, step)).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                return autoencoder_loss(vae, self._pixels(rows), noise, latents.divergence)

        def save(module: AutoencoderKL) -> None:
            self._set_scale(module)
            module.save_pretrained(self.out / "vae")

        settings = {**asdict(latents), "seed": self.config.seed}
        trained = self._fit("autoencoder", vae, latents, loss_at, save, settings, _OUTER)
        self._set_scale(trained)
        return trained

    @torch.no_grad()
    def _set_scale(self, vae: Any) -> None:
        count = min(len(self.data), BATCH)
        rows = torch.arange(count) * len(self.data) // count
        std = vae.encode(self._pixels(rows)).latent_dist.mean.std()
        vae.register_to_config(scaling_factor=1 / float(std))

    def diffusion(self, clip: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, compile_network: bool) -> None:
        """Train the diffusion model, and save all parts as a pipeline."""
        with without_advice():  # the import warns about image processors, which are not used here
            from diffusers import StableDiffusionPipeline

        config, data = self.config, self.data
        text = text_encoder_of(clip).to(self.device).eval().requires_grad_(False)
        tokens = torch.cat([tokens_of(tokenizer, data.captions), tokens_of(tokenizer, [""])])
        edge = halved(data.images.shape[-1], vae.config.block_out_channels, "images")
        with seeded(config.seed):
            unet = build_unet(config, vae.config.latent_channels, edge, text.config.hidden_size)
        if config.start:
            load_start(unet, config)
        vae.to(self.device).eval().requires_grad_(False)
        encode = partial(autoencoder.encode, vae)
        encoded = encode_all(data.images, encode, self.device, self.autocast, self.callbacks)
        scheduler = build_scheduler(config, clip_sample=False, steps_offset=1)  # as the pipeline expects
        schedule, _ = read_scheduler(scheduler_config(scheduler))
        unet.to(self.device).train()
        if self.device.type == "cpu":
            unet.set_attn_processor(AttnProcessor())  # the gradient of torch's fused attention is slow on a CPU
        network = torch.compile(unet, dynamic=False) if compile_network else unet
        settings = {"words": sorted(set().union(*map(words_of, set(data.captions)))), "times": config.times}

        def loss_at(step: int) -> Tensor:
            generator = generator_of(config.seed, 1, step)
            rows = batch_rows(step, len(data), config.batch_size, config.seed)
            empty = torch.rand(len(rows), generator=generator) < config.label_dropout
            ids = tokens[torch.where(empty, len(data), rows)].to(self.device)
            t = draw_times(len(rows), config, schedule, generator)
            x = encoded[rows].float()
            noise = torch.randn(x.shape, generator=generator)

            def predict(noisy: Tensor, t: Tensor) -> Tensor:
                with torch.no_grad():
                    prompts = text(ids)[0]
                return network(noisy, t, encoder_hidden_states=prompts).sample  # type: ignore[no-any-return]

            batch = Noised(x, noise, t, schedule, self.device)
            return batch.loss(batch.predicted_by(predict, step, config, self.autocast), config)

        def save(module: UNet2DConditionModel) -> None:
            pipeline = StableDiffusionPipeline(
                vae, text, tokenizer, module, scheduler, None, None, requires_safety_checker=False
            )
            pipeline.save_pretrained(self.out, safe_serialization=True)
            write_durably(self.out / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")

        run = {**asdict(config), "text_encoder": fingerprint([text]), "autoencoder": fingerprint([vae])}
        self._fit("diffusion", unet, config, loss_at, save, run, _OUTER)


def _load(folder: Path, library: str, kind: str, what: str) -> Any:
    """Load an existing network in float32.

    Raises:
        InputError: the folder holds no network of this class, or none in safetensors.
    """
    check_files(folder)
    try:
        with quiet():
            return load_network(folder, library, kind, torch.float32, None)
    except FAULTS as e:
        raise InputError(f"{folder} cannot be used as {what}: {one_line(e)}") from e


def _load_towers(folder: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    clip = _load(folder, "transformers", "CLIPModel", "a contrastive model")
    try:
        return clip, CLIPTokenizer.from_pretrained(folder)
    except FAULTS as e:
        raise InputError(f"{folder} cannot be used as a contrastive model: {one_line(e)}") from e
