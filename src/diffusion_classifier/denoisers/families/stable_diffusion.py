"""Stable Diffusion 1, 2 and XL, and what was made of them: text-conditional U-Nets on latents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from diffusers import Transformer2DModel
from torch import Tensor

from ...errors import InputError
from ..base import Conditioning
from ..text_conditional import TextConditional


class StableDiffusion(TextConditional):
    """A UNet2DConditionModel on the latents of an autoencoder, conditioned on the words of a prompt.

    Latent consistency models are such networks, too, and are told a guidance scale: see `guidance_scale`.

    Args:
        pipeline: StableDiffusionPipeline or LatentConsistencyModelPipeline.

    Raises:
        InputError: the network needs more than a noisy latent and a prompt, or prompts of another width.
    """

    family = "stable-diffusion"
    conditions = ("prompt_embeds",)
    any_size = True
    guidance_scale = 8.5
    """What a distilled network is told: the middle of what latent consistency models are trained with, and the default
    of their pipeline."""

    def __init__(self, pipeline: Any, image_size: int | None = None) -> None:
        unet = pipeline.unet
        _refuse_others(unet, ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"))
        read = unet.config.cross_attention_dim
        made = getattr(getattr(pipeline.text_encoder, "config", None), "hidden_size", None)
        if isinstance(read, int) and made not in (None, read):
            raise InputError(
                f"the UNet reads prompts of {read} numbers a token, and the text encoder makes {made}: "
                "it is that of another model"
            )
        super().__init__(pipeline, image_size, before_the_prompt=_before_the_prompt(unet))
        self._guidance = None
        if (width := unet.config.time_cond_proj_dim) is not None:
            self._guidance = pipeline.get_guidance_scale_embedding(
                torch.tensor([self.guidance_scale - 1]), embedding_dim=width
            )

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """See `Denoiser.to`."""
        if self._guidance is not None:
            self._guidance = self._guidance.to(device)
        return super().to(device, dtype)

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)
        return {"prompt_embeds": embeds}

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        embeds = conditioning.tensors["prompt_embeds"].to(noisy.dtype)
        guidance = self._guidance
        if guidance is not None:
            guidance = guidance.to(noisy.dtype).expand(len(noisy), -1)
        output: Tensor = self.network(
            noisy, self.schedule.network_time(t), encoder_hidden_states=embeds, timestep_cond=guidance
        ).sample
        return output


class StableDiffusionXL(TextConditional):
    """A UNet2DConditionModel on latents, conditioned on a prompt in two encodings, and on sizes.

    The sizes say what a training image was cropped from: here always that it was not cropped, and of the image's size.

    Args:
        pipeline: StableDiffusionXLPipeline.

    Raises:
        InputError: the network needs more than a noisy latent, a prompt and sizes.
    """

    family = "stable-diffusion-xl"
    conditions = ("prompt_embeds", "pooled")
    any_size = True

    def __init__(self, pipeline: Any, image_size: int | None = None) -> None:
        unet = pipeline.unet
        _refuse_others(unet, ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"))
        if unet.config.addition_embed_type != "text_time":
            raise InputError(
                f"the UNet has addition_embed_type {unet.config.addition_embed_type!r} where that of Stable Diffusion "
                "XL has 'text_time'"
            )
        # The pooled prompt is added to the time: all later modules see it.
        super().__init__(pipeline, image_size, before_the_prompt=[unet.conv_in, unet.time_embedding])
        width, pooler = unet.config.projection_class_embeddings_input_dim, pipeline.text_encoder_2
        known = 6 * unet.config.addition_time_embed_dim + (pooler.config.projection_dim if pooler is not None else 0)
        if pooler is not None and known != width:
            raise InputError(
                f"the UNet reads {width} additional numbers where six sizes and a pooled prompt are {known}: the "
                "refiner of Stable Diffusion XL cannot classify by itself"
            )

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def encode_null(self) -> dict[str, Tensor]:
        """See `TextConditional.encode_null`: zeros where the pipeline says that these stand for the empty prompt."""
        null = super().encode_null()
        if self.pipeline.config.force_zeros_for_empty_prompt:
            return {name: torch.zeros_like(tensor) for name, tensor in null.items()}
        return null

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        embeds, pooled = (conditioning.tensors[name].to(noisy.dtype) for name in ("prompt_embeds", "pooled"))
        height, width = (edge * self.image_size // self.latent_shape[-1] for edge in noisy.shape[-2:])
        # Made where they are needed: nothing is copied to a GPU while it computes.
        zero = noisy.new_zeros(len(noisy), dtype=torch.float32)
        sizes = torch.stack([zero + height, zero + width, zero, zero, zero + height, zero + width], dim=1)
        added = {"text_embeds": pooled, "time_ids": sizes}
        output: Tensor = self.network(
            noisy, self.schedule.network_time(t), encoder_hidden_states=embeds, added_cond_kwargs=added
        ).sample
        return output


class DeepFloydIF(TextConditional):
    """Stage 1 of DeepFloyd IF: a UNet2DConditionModel on pixels, with learned variance.

    Args:
        pipeline: IFPipeline.

    Raises:
        InputError: the network needs more than a noisy image and a prompt, as the later stages do.
    """

    family = "deepfloyd-if"
    conditions = ("prompt_embeds",)
    any_size = True
    max_tokens = 77

    def __init__(self, pipeline: Any, image_size: int | None = None) -> None:
        unet = pipeline.unet
        _refuse_others(unet, ("class_embed_type", "num_class_embeds", "time_cond_proj_dim"))
        super().__init__(pipeline, image_size, before_the_prompt=[unet.conv_in, unet.time_embedding])

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, _ = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, device=self.device)
        return {"prompt_embeds": embeds}

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        embeds = conditioning.tensors["prompt_embeds"].to(noisy.dtype)
        output: Tensor = self.network(noisy, self.schedule.network_time(t), encoder_hidden_states=embeds).sample
        return output


def _refuse_others(unet: Any, names: tuple[str, ...]) -> None:
    for name in names:
        if unet.config.get(name) is not None:
            raise InputError(
                f"the UNet has {name} {unet.config[name]!r}: it needs more than a prompt, which is not supported"
            )


def _before_the_prompt(unet: Any) -> Iterator[torch.nn.Module]:
    """The modules up to the first cross-attention, which is where a prompt enters."""
    yield unet.conv_in
    yield unet.time_embedding
    for block in unet.down_blocks:
        if not getattr(block, "has_cross_attention", False):
            yield block
            continue
        yield block.resnets[0]
        transformer = block.attentions[0]
        if isinstance(transformer, Transformer2DModel):
            yield transformer.norm
            yield transformer.proj_in
            first = transformer.transformer_blocks[0]
            if not first.only_cross_attention:
                yield first.norm1
                yield first.attn1
        return
