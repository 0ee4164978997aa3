"""What a text-to-image model consists of: tokenizer, towers, autoencoder, U-Net; their settings, and their losses.

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
    """The contrastive model: a transformer for captions and one for images, with one space for both.

    Args:
        width: of both.
        layers: of both.
        patch_size: edge of the squares that an image is cut into, in pixels; about an eighth of the image's if None.
        max_tokens: of a caption, start and end included.
        vocabulary: tokens at most.
        epochs: passes over the training images; see `loop.num_steps` for None.
        batch_size: captions that an image's own is told from, plus one.
        learning_rate: see `TrainConfig`, and so the others.
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
    """The autoencoder.

    Args:
        channels: width of each resolution level, high to low: each but the first halves the edge.
        latent_channels: of a latent.
        divergence: weight of the Kullback-Leibler divergence, a dimension, against the mean squared error.
        epochs: passes over the training images; one if None, and see `loop.num_steps`.
        batch_size: images a step.
        learning_rate: see `TrainConfig`, and so the others.
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
"""Values such as those that these settings take."""
_Settings = TypeVar("_Settings", Towers, Latents)


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


def usual_patch_size(size: int) -> int:
    """The divisor of an image's edge that is nearest to an eighth of it."""
    return min((p for p in range(1, size + 1) if size % p == 0), key=lambda p: abs(8 * p - size))


def halved(size: int, channels: Sequence[int], what: str) -> int:
    """Edge of the lowest of a network's levels, of which each but the first halves it.

    Raises:
        InputError: it cannot be halved so often.
    """
    factor: int = 2 ** (len(channels) - 1)
    if size % factor:
        raise InputError(
            f"{what} of {size} pixels cannot be halved {len(channels) - 1} times, as channels "
            f"{'/'.join(map(str, channels))} would have it"
        )
    return size // factor


def build_tokenizer(captions: Sequence[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """CLIP's kind of tokenizer, with the words of these captions."""
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
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=max_tokens
    )


def tokens_of(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """Token ids (B, L) of captions, padded as the pipeline pads prompts.

    Raises:
        InputError: a caption has more tokens than are read.
    """
    limit = tokenizer.model_max_length
    ids = tokenizer(list(captions), padding="max_length", max_length=limit).input_ids
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if len(ids[longest]) > limit:
        raise InputError(f"the caption {captions[longest]!r} has {len(ids[longest])} tokens; max_tokens is {limit}")
    return torch.tensor(ids)


def build_towers(towers: Towers, tokenizer: CLIPTokenizer, size: int) -> CLIPModel:
    """The contrastive model for images of that edge, with its first weights."""
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
    """The text tower by itself."""
    encoder = CLIPTextModel(clip.config.text_config)
    inner = getattr(encoder, "text_model", encoder)  # older versions of transformers wrap it
    inner.load_state_dict(clip.text_model.state_dict())
    encoder.set_attn_implementation("sdpa")  # whatever the tower was trained with
    return encoder


def contrastive_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy over the captions of a batch and over its images; equal captions count as one.

    Args:
        logits: similarity of image i and caption j, (B, B).
        tokens: of the captions, (B, L).
    """
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    goal = same / same.sum(1, keepdim=True)
    return -(goal * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2


def build_autoencoder(latents: Latents, size: int) -> AutoencoderKL:
    """The autoencoder of images of that edge, with its first weights."""
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
    """Mean squared error of the reconstruction, and the divergence of latents from the normal distribution."""
    latent = vae.encode(x).latent_dist
    decoded = vae.decode(latent.mean + latent.std * noise).sample
    kl = 0.5 * (latent.mean.square() + latent.var - 1 - latent.logvar).mean()
    loss: Tensor = (decoded.float() - x).square().mean() + divergence * kl
    return loss


def build_unet(config: TrainConfig, channels: int, size: int, width: int) -> UNet2DConditionModel:
    """The diffusion model, with its first weights.

    Args:
        config: its shape.
        channels: of a latent.
        size: edge of a latent.
        width: of the prompts' encodings.
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
        attention_head_dim=max(1, config.channels[0] // 16),  # in spite of its name, the number of heads
        norm_num_groups=math.gcd(32, *config.channels),
        dropout=config.dropout,
        resnet_time_scale_shift="scale_shift",
    )
