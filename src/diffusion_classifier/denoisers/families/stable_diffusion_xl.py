"""Stable Diffusion XL, and models derived from it: U-Nets conditioned on two CLIPs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..base import Conditioning, KnownModel
from ..model_settings import ModelSettings
from ..text_conditional import TextConditional, check_unset


class StableDiffusionXL(TextConditional):
    """A UNet2DConditionModel on latents, conditioned on a prompt in two encodings, and on sizes.

    The sizes describe from what a training image was cropped. Here they are always the image's own size, uncropped.

    Raises:
        InputError: the network needs more than a noisy latent, a prompt and sizes.
    """

    family = "stable-diffusion-xl"
    pipelines = ("StableDiffusionXLPipeline",)
    known_models = (KnownModel("stabilityai/stable-diffusion-xl-base-1.0", "CreativeML OpenRAIL++-M"),)
    float32_components = ("vae", "text_encoder", "text_encoder_2")
    conditions = ("prompt_embeds", "pooled")
    any_size = True

    def __init__(self, pipeline: Any, settings: ModelSettings | None = None) -> None:
        unet = pipeline.unet
        check_unset(unet, ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"))
        if unet.config.addition_embed_type != "text_time":
            raise InputError(
                f"the UNet has addition_embed_type {unet.config.addition_embed_type!r} where that of Stable Diffusion "
                "XL has 'text_time'"
            )
        # The pooled prompt is added to the time embedding, on which all later modules depend.
        super().__init__(pipeline, settings, before_the_prompt=[unet.conv_in, unet.time_embedding])
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
        """Return zeros if the pipeline uses them as the empty prompt. See `TextConditional.encode_null`."""
        null = super().encode_null()
        if self.pipeline.config.force_zeros_for_empty_prompt:
            return {name: torch.zeros_like(tensor) for name, tensor in null.items()}
        return null

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        embeds, pooled = (conditioning.tensors[name].to(noisy.dtype) for name in ("prompt_embeds", "pooled"))
        height, width = (edge * self.image_size // self.latent_shape[-1] for edge in noisy.shape[-2:])
        # Built on the device, so that nothing is copied to a GPU while it computes.
        zero = noisy.new_zeros(len(noisy), dtype=torch.float32)
        sizes = torch.stack([zero + height, zero + width, zero, zero, zero + height, zero + width], dim=1)
        added = {"text_embeds": pooled, "time_ids": sizes}
        output: Tensor = self.network(
            noisy, self.schedule.network_time(t), encoder_hidden_states=embeds, added_cond_kwargs=added
        ).sample
        return output
