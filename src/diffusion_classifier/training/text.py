"""Text-conditional latent diffusion from scratch: a StableDiffusionPipeline that diffusers itself loads back.

In three stages, as Stable Diffusion 2 came about: a contrastive model of images and captions, whose text tower is then
frozen and reads the prompts; an autoencoder; and the diffusion model on its latents. Contrastive and generative reader
so share the very same text encoder.

Shape legend: B rows of a batch, L tokens.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ..denoisers import autoencoder
from ..denoisers.base import scheduler_config, without_advice
from ..denoisers.load import SETTINGS_FILE, check_files, load_network, quiet
from ..devices import native_bfloat16, one_line
from ..exceptions import InputError
from ..files import write_durably
from ..prompts import words_of
from ..schedules import read_scheduler
from .data import CaptionedImages
from .denoising import TrainConfig, build_scheduler, denoising_loss, draw_times
from .loop import Progress, Recipe, batch_rows, fit, generator_of, num_steps, seed_of, seeded, writing

CHECKPOINT = "checkpoint"
CONTRASTIVE = "contrastive"
"""Folder of the contrastive model within that of the pipeline."""
_OUTER = ("conv_in.", "conv_out.")
_ENCODE_BATCH = 256


@dataclass(frozen=True)
class Towers:
    """The contrastive model: a transformer for captions and one for images, with one space for both.

    Args:
        width: of both.
        layers: of both.
        patch_size: edge of the squares that an image is cut into, in pixels.
        max_tokens: of a caption, start and end included.
        vocabulary: tokens at most.
        epochs: passes over the training images.
        batch_size: captions that an image's own is told from, plus one.
        learning_rate: see `TrainConfig`, and so the others.
    """

    width: int = 128
    layers: int = 4
    patch_size: int = 7
    max_tokens: int = 32
    vocabulary: int = 1024
    epochs: float = 10.0
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    ema: float = 0.999
    optimizer: str = "adamw"


@dataclass(frozen=True)
class Latents:
    """The autoencoder.

    Args:
        channels: width of each resolution level, high to low: each but the first halves the edge.
        latent_channels: of a latent.
        divergence: weight of the Kullback-Leibler divergence, a dimension, against the mean squared error.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: see `TrainConfig`, and so the others.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 8
    divergence: float = 1e-4
    epochs: float = 1.0
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    ema: float = 0.999
    optimizer: str = "adamw"


_Settings = TypeVar("_Settings", Towers, Latents)
_Module = TypeVar("_Module", bound=torch.nn.Module)


def read_settings(kind: type[_Settings], text: str) -> _Settings:
    """Settings from "width=128,layers=4"; several numbers of one are separated by slashes.

    Raises:
        InputError: an unknown name, or a value that is no positive number.
    """
    known = {field.name: field.default for field in fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise InputError(f"{name!r} is not one of {', '.join(known)}")
        default = known[name]
        try:
            if isinstance(default, tuple):
                values[name] = tuple(map(int, value.split("/")))
            else:
                values[name] = type(default)(value)  # type: ignore[misc]
        except ValueError as e:
            raise InputError(f"{name}={value!r} is not a value as {default!r} is") from e
        low = min(values[name]) if isinstance(default, tuple) else values[name]
        if not isinstance(default, str) and not (0 <= low < math.inf):
            raise InputError(f"{name} must be at least 0 and finite; got {value}")
    return kind(**values)


def train_text(
    data: CaptionedImages,
    config: TrainConfig,
    out: Path,
    *,
    towers: Towers | Path = Towers(),
    latents: Latents | Path = Latents(),
    device: str = "cpu",
    mixed_precision: bool | None = None,
    compile_network: bool = False,
    checkpoint_every: int = 1000,
    on_step: Callable[[Progress], None] = lambda _: None,
    on_stage: Callable[[str, int, int], None] = lambda *_: None,
) -> Path:
    """Train, or go on training, into the folder `out`, which `StableDiffusionPipeline` loads; returns it.

    Args:
        data: training images.
        config: of the diffusion model; `label_dropout` is the share of images shown with an empty caption.
        out: holds the pipeline; in `contrastive/` the contrastive model; in `checkpoint/` what is needed to go on.
        towers: of the contrastive model; or the folder of one that is there already.
        latents: of the autoencoder; or the folder of one that is there already.
        device: of the networks.
        mixed_precision: bfloat16 autocast; where the processor computes in it natively if None.
        compile_network: torch.compile of the U-Net.
        checkpoint_every: steps between checkpoints.
        on_step: called after each step.
        on_stage: called with the name of each stage, its number of steps, and of images a step.

    Raises:
        InputError: settings that do not fit the images; a caption is too long; `out` holds another run, or a damaged
            one; the loss is no longer finite.
    """
    if config.flip or config.patch_size != 1 or config.start:
        raise InputError("flip, patch_size and start are not for models that read captions: left and right matter")
    if (out / "model_index.json").exists() and not (out / CHECKPOINT).exists():
        raise InputError(f"{out} holds a model that no training here made: choose another --out")
    place = torch.device(device)
    autocast = native_bfloat16(place) if mixed_precision is None else mixed_precision
    stages = _Stages(data, config, out, place, autocast, checkpoint_every, on_step, on_stage)
    clip, tokenizer = _load_towers(towers) if isinstance(towers, Path) else stages.towers(towers)
    vae = (
        _load(latents, "diffusers", "AutoencoderKL", "an autoencoder")
        if isinstance(latents, Path)
        else stages.latents(latents)
    )
    stages.diffusion(clip, tokenizer, vae, compile_network)
    return out


def build_tokenizer(captions: Sequence[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """CLIP's kind of tokenizer, with the words of these captions.

    Raises:
        InputError: a caption has more tokens than that.
    """
    base = CLIPTokenizer()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        # All given numbers here: else those at the ends of words are numbered anew, and in another order, each time.
        special_tokens=[base.bos_token, base.eos_token, *alphabet, *(character + "</w>" for character in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    base.backend_tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(base.backend_tokenizer.to_str())["model"]
    tokenizer = CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=max_tokens
    )
    lengths = [len(ids) for ids in tokenizer(list(captions)).input_ids]
    if max(lengths) > max_tokens:
        longest = captions[lengths.index(max(lengths))]
        raise InputError(f"the caption {longest!r} has {max(lengths)} tokens; max_tokens is {max_tokens}")
    return tokenizer


def tokens_of(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (B, L) of captions, padded as the pipeline pads prompts."""
    ids = tokenizer(list(captions), padding="max_length", max_length=tokenizer.model_max_length).input_ids
    return torch.tensor(ids)


def contrastive_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy over the captions of a batch and over its images; equal captions count as one.

    Args:
        logits: similarity of image i and caption j, (B, B).
        tokens: of the captions, (B, L).
    """
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    goal = same / same.sum(1, keepdim=True)
    return -(goal * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2


def autoencoder_loss(vae: AutoencoderKL, x: Tensor, noise: Tensor, divergence: float) -> Tensor:
    """Mean squared error of the reconstruction, and the divergence of latents from the normal distribution."""
    latent = vae.encode(x).latent_dist
    decoded = vae.decode(latent.mean + latent.std * noise).sample
    kl = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).mean()
    loss: Tensor = (decoded.float() - x).square().mean() + divergence * kl
    return loss


@dataclass(frozen=True)
class _Stages:
    data: CaptionedImages
    config: TrainConfig
    out: Path
    device: torch.device
    autocast: bool
    checkpoint_every: int
    on_step: Callable[[Progress], None]
    on_stage: Callable[[str, int, int], None]

    @cached_property
    def _fingerprint(self) -> str:
        return self.data.fingerprint()

    def _pixels(self, rows: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1], on the device."""
        return (self.data.images[rows].to(self.device).float() / 127.5 - 1).expand(-1, 3, -1, -1)

    def _fit(
        self,
        stage: str,
        module: _Module,
        recipe: Recipe,
        loss_at: Callable[[int], Tensor],
        save: Callable[[_Module], None],
        settings: Mapping[str, Any],
        outer: Sequence[str] = (),
    ) -> _Module:
        """The module with its averaged weights, trained."""
        steps = num_steps(recipe, len(self.data))
        self.on_stage(stage, steps, recipe.batch_size)
        averaged = copy.deepcopy(module).eval().requires_grad_(False)

        def save_average(ema: dict[str, Tensor]) -> None:
            averaged.load_state_dict(ema, strict=False)  # buffers are no parameters
            with quiet():
                save(averaged)

        run = {"config": dict(settings), "data": self._fingerprint, "class_names": []}
        ema = fit(
            module,
            loss_at,
            recipe,
            steps,
            self.out / CHECKPOINT / stage,
            run,
            defaults=dict(settings),
            save=save_average,
            outer=outer,
            checkpoint_every=self.checkpoint_every,
            on_step=self.on_step,
            stage=stage,
        )
        averaged.load_state_dict(ema, strict=False)
        return averaged

    def towers(self, towers: Towers) -> tuple[CLIPModel, CLIPTokenizer]:
        """The contrastive model."""
        size = self.data.images.shape[-1]
        if size % towers.patch_size:
            raise InputError(f"images of {size} pixels cannot be cut into squares of {towers.patch_size}")
        tokenizer = build_tokenizer(self.data.captions, towers.vocabulary, towers.max_tokens)
        with seeded(seed_of(self.config.seed, 10)):
            clip = CLIPModel(_clip_config(towers, tokenizer, size)).to(self.device).train()
        tokens = tokens_of(tokenizer, self.data.captions)
        folder = self.out / CONTRASTIVE
        with writing(self.out):
            tokenizer.save_pretrained(folder)
            CLIPImageProcessorPil(
                size={"shortest_edge": size},
                crop_size={"height": size, "width": size},
                image_mean=[0.5] * 3,
                image_std=[0.5] * 3,
            ).save_pretrained(folder)

        def loss_at(step: int) -> Tensor:
            rows = batch_rows(step, len(self.data), towers.batch_size, seed_of(self.config.seed, 11))
            ids = tokens[rows].to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                output = clip(input_ids=ids, pixel_values=self._pixels(rows))
            return contrastive_loss(output.logits_per_image.float(), ids)

        settings = {**asdict(towers), "seed": self.config.seed}
        trained = self._fit(CONTRASTIVE, clip, towers, loss_at, lambda m: m.save_pretrained(folder), settings)
        return trained, tokenizer

    def latents(self, latents: Latents) -> AutoencoderKL:
        """The autoencoder, with the scale at which its latents have a variance of 1."""
        size, levels = self.data.images.shape[-1], len(latents.channels)
        if size % 2 ** (levels - 1):
            raise InputError(f"images of {size} pixels cannot be halved {levels - 1} times by the autoencoder")
        with seeded(seed_of(self.config.seed, 20)):
            vae = AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * levels,
                up_block_types=["UpDecoderBlock2D"] * levels,
                block_out_channels=latents.channels,
                layers_per_block=1,
                latent_channels=latents.latent_channels,
                norm_num_groups=math.gcd(32, *latents.channels),
                sample_size=size,
            )
        vae.to(self.device).train()
        edge = size // 2 ** (levels - 1)

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
        count = min(len(self.data), _ENCODE_BATCH)
        rows = torch.arange(count) * len(self.data) // count
        std = vae.encode(self._pixels(rows)).latent_dist.mean.std()
        vae.register_to_config(scaling_factor=1 / float(std))

    @torch.no_grad()
    def _encode(self, vae: AutoencoderKL) -> Tensor:
        """Latents of all images, float16, in the computer's memory."""
        parts = []
        for first in range(0, len(self.data), _ENCODE_BATCH):
            rows = torch.arange(first, min(first + _ENCODE_BATCH, len(self.data)))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                parts.append(autoencoder.encode(vae, self._pixels(rows)).half().cpu())
            self.on_step(Progress(int(rows[-1]) + 1, len(self.data), float("nan"), "latents"))
        return torch.cat(parts)

    def diffusion(self, clip: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, compile_network: bool) -> None:
        """The diffusion model, and all together as a pipeline."""
        with without_advice():  # the import tells what image processors, not used here, would need
            from diffusers import StableDiffusionPipeline

        config, data = self.config, self.data
        text = _text_encoder(clip).to(self.device).eval().requires_grad_(False)
        tokens = torch.cat([tokens_of(tokenizer, data.captions), tokens_of(tokenizer, [""])])
        vae.to(self.device).eval().requires_grad_(False)
        self.on_stage("latents", len(data), 1)
        encoded = self._encode(vae)
        scheduler = build_scheduler(config, clip_sample=False, steps_offset=1)  # as the pipeline wants it
        schedule, _ = read_scheduler(scheduler_config(scheduler))
        with seeded(config.seed):
            unet = build_unet(config, encoded.shape[1], encoded.shape[-1], text.config.hidden_size)
        unet.to(self.device).train()
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

            return denoising_loss(x, noise, t, predict, step, config, schedule, self.device, self.autocast)

        def save(module: UNet2DConditionModel) -> None:
            pipeline = StableDiffusionPipeline(
                vae, text, tokenizer, module, scheduler, None, None, requires_safety_checker=False
            )
            pipeline.save_pretrained(self.out, safe_serialization=True)
            write_durably(self.out / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")

        self._fit("diffusion", unet, config, loss_at, save, asdict(config), _OUTER)


def build_unet(config: TrainConfig, channels: int, size: int, width: int) -> UNet2DConditionModel:
    """The network, with its first weights.

    Args:
        config: its shape.
        channels: of a latent.
        size: edge of a latent.
        width: of the prompts' encodings.

    Raises:
        InputError: latents of that size cannot be halved so often.
    """
    levels = len(config.channels)
    if size % 2 ** (levels - 1):
        raise InputError(f"latents of {size} pixels cannot be halved {levels - 1} times: choose fewer channels")
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=["CrossAttnDownBlock2D"] * levels,
        up_block_types=["CrossAttnUpBlock2D"] * levels,
        cross_attention_dim=width,
        attention_head_dim=max(1, config.channels[0] // 16),  # in spite of its name, the number of heads
        norm_num_groups=math.gcd(32, *config.channels),
        dropout=config.dropout,
        resnet_time_scale_shift="scale_shift",
    )


def _clip_config(towers: Towers, tokenizer: CLIPTokenizer, size: int) -> CLIPConfig:
    shared = {
        "hidden_size": towers.width,
        "intermediate_size": 4 * towers.width,
        "num_hidden_layers": towers.layers,
        "num_attention_heads": max(1, towers.width // 32),
    }
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": towers.max_tokens, **ids}
    vision = {"image_size": size, "patch_size": towers.patch_size}
    return CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=towers.width)


def _text_encoder(clip: CLIPModel) -> CLIPTextModel:
    """The text tower by itself."""
    encoder = CLIPTextModel(clip.config.text_config)
    inner = getattr(encoder, "text_model", encoder)  # older versions of transformers wrap it
    inner.load_state_dict(clip.text_model.state_dict())
    return encoder


def _load(folder: Path, library: str, kind: str, what: str) -> Any:
    """A network that is there already, in float32.

    Raises:
        InputError: it is none of that kind, or not in safetensors.
    """
    check_files(folder)
    try:
        with quiet():
            return load_network(folder, library, kind, torch.float32, None)
    except (OSError, ValueError, SafetensorError) as e:
        raise InputError(f"{folder} cannot be used as {what}: {one_line(e)}") from e


def _load_towers(folder: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    clip = _load(folder, "transformers", "CLIPModel", "a contrastive model")
    return clip, CLIPTokenizer.from_pretrained(folder)
