"""Parts of a text-to-image model, their settings and losses: tokenizer, towers, autoencoder, U-Net.

Shape legend: B rows of a batch, L tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from ..errors import InputError
from .denoising import TrainConfig


@dataclass(frozen=True)
class Towers:
    """Settings of the contrastive model: a transformer for captions and one for images, with a shared output space.

    Args:
        width: width of both transformers.
        layers: number of layers of both transformers.
        patch_size: edge in pixels of the patches of an image. Default: about an eighth of the image's edge.
        max_tokens: maximum number of tokens per caption, start and end included.
        vocabulary: maximum number of different tokens.
        epochs: number of passes over the training images; see `loop.num_steps` for None.
        batch_size: images per step. Each image is contrasted with the captions of all others.
        learning_rate: see `TrainConfig`, as for the other settings.
    """

    width: int = 128
    layers: int = 4
    patch_size: int | None = None
    max_tokens: int = 32
    vocabulary: int = 1024
    epochs: float | None = None
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    ema: float = 0.999
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % max(1, self.width // 32):
            raise InputError(f"the width of the towers must be a multiple of 32, the width of a head; got {self.width}")


@dataclass(frozen=True)
class Latents:
    """Settings of the autoencoder.

    Args:
        channels: width of each resolution level, from high to low resolution. Each but the first halves the edge.
        latent_channels: number of channels of a latent.
        divergence: weight of the Kullback-Leibler divergence per dimension, relative to the mean squared error.
        epochs: number of passes over the training images. Default: one; see `loop.num_steps`.
        batch_size: images per step.
        learning_rate: see `TrainConfig`, as for the other settings.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 8
    divergence: float = 1e-4
    epochs: float | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.0
    ema: float = 0.999
    optimizer: str = "adamw"


_WITHOUT_DEFAULT = {"epochs": 10.0, "patch_size": 7}
"""Example values, used to infer the type of settings whose default is None."""
_Settings = TypeVar("_Settings", Towers, Latents)


def read_settings(kind: type[_Settings], text: str) -> _Settings:
    """Parse settings such as "width=128,layers=4,channels=32/64". Slashes separate several numbers.

    Raises:
        InputError: an unknown name, or a value that is not a positive number.
    """
    known = {field.name: field.default for field in fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known:
            raise InputError(f"{name!r} is not one of {', '.join(known)}")
        default = _WITHOUT_DEFAULT.get(name, known[name])
        try:
            if isinstance(default, tuple):
                values[name] = tuple(map(int, value.split("/")))
            else:
                values[name] = type(default)(value)  # type: ignore[misc]
        except ValueError as e:
            raise InputError(f"{name}={value!r} is not a value as {default!r} is") from e
        low = min(values[name]) if isinstance(default, tuple) else values[name]
        least = int(isinstance(default, int | tuple) and name != "warmup")
        if not isinstance(default, str) and not (least <= low < math.inf):
            raise InputError(f"{name} must be at least {least} and finite; got {value}")
    return kind(**values)


def default_patch_size(size: int) -> int:
    """Return the divisor of an image's edge that is nearest to an eighth of it."""
    return min((p for p in range(1, size + 1) if size % p == 0), key=lambda p: abs(8 * p - size))


def halved(size: int, channels: Sequence[int], what: str) -> int:
    """Return the edge at the lowest level of a network, where each level but the first halves it.

    Raises:
        InputError: the edge cannot be halved that often.
    """
    factor: int = 2 ** (len(channels) - 1)
    if size % factor:
        raise InputError(
            f"{what} of {size} pixels cannot be halved {len(channels) - 1} times, as channels "
            f"{'/'.join(map(str, channels))} would have it"
        )
    return size // factor


def build_tokenizer(captions: Sequence[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """Train a tokenizer of CLIP's kind on captions."""
    base = CLIPTokenizer()
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        # Listed in full, because the trainer would number word endings in another order each time.
        special_tokens=[base.bos_token, base.eos_token, *alphabet, *(character + "</w>" for character in alphabet)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    base.backend_tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(base.backend_tokenizer.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=max_tokens
    )


def tokens_of(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Return the token ids (B, L) of captions, padded as the pipeline pads prompts.

    Raises:
        InputError: a caption has more tokens than the tokenizer's limit.
    """
    limit = tokenizer.model_max_length
    ids = tokenizer(list(captions), padding="max_length", max_length=limit).input_ids
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if len(ids[longest]) > limit:
        raise InputError(f"the caption {captions[longest]!r} has {len(ids[longest])} tokens; max_tokens is {limit}")
    return torch.tensor(ids)


def build_towers(towers: Towers, tokenizer: CLIPTokenizer, size: int) -> CLIPModel:
    """Build the contrastive model for images with edge `size`, with its initial weights."""
    shared = {
        "hidden_size": towers.width,
        "intermediate_size": 4 * towers.width,
        "num_hidden_layers": towers.layers,
        "num_attention_heads": max(1, towers.width // 32),
    }
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": towers.max_tokens, **ids}
    vision = {"image_size": size, "patch_size": towers.patch_size}
    return CLIPModel(CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=towers.width))


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """Return a copy of the text tower."""
    encoder = CLIPTextModel(clip.config.text_config)
    inner = getattr(encoder, "text_model", encoder)  # older versions of transformers wrap it
    inner.load_state_dict(clip.text_model.state_dict())
    encoder.set_attn_implementation("sdpa")  # in place of the implementation used in training
    return encoder


def contrastive_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy over the captions and over the images of a batch. Equal captions count as one.

    Args:
        logits: similarity of image i and caption j, (B, B).
        tokens: tokens of the captions, (B, L).
    """
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    goal = same / same.sum(1, keepdim=True)
    return -(goal * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2


def build_autoencoder(latents: Latents, size: int) -> AutoencoderKL:
    """Build the autoencoder for images with edge `size`, with its initial weights."""
    levels = len(latents.channels)
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=latents.channels,
        layers_per_block=1,
        latent_channels=latents.latent_channels,
        norm_num_groups=math.gcd(32, *latents.channels),
        sample_size=size,
    )


def autoencoder_loss(vae: AutoencoderKL, x: Tensor, noise: Tensor, divergence: float) -> Tensor:
    """Return the mean squared error of the reconstruction, plus the weighted divergence of the latents."""
    latent = vae.encode(x).latent_dist
    decoded = vae.decode(latent.mean + latent.std * noise).sample
    kl = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).mean()
    loss: Tensor = (decoded.float() - x).square().mean() + divergence * kl
    return loss


def build_unet(config: TrainConfig, channels: int, size: int, width: int) -> UNet2DConditionModel:
    """Build the diffusion model, with its initial weights.

    Args:
        config: settings that describe its shape.
        channels: number of channels of a latent.
        size: edge of a latent.
        width: width of the encoded prompts.
    """
    levels = len(config.channels)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=["DownBlock2D"] * (levels - 1)
        + ["CrossAttnDownBlock2D" if config.attention else "DownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D" if config.attention else "UpBlock2D"] + ["UpBlock2D"] * (levels - 1),
        cross_attention_dim=width,
        attention_head_dim=max(1, config.channels[0] // 16),  # despite its name, this is the number of heads
        norm_num_groups=math.gcd(32, *config.channels),
        dropout=config.dropout,
        resnet_time_scale_shift="scale_shift",
    )
