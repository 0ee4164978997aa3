"""Flux.1 dev and schnell: transformers conditioned on CLIP and T5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ..base import Conditioning, KnownModel
from ..model_settings import ModelSettings
from ..text_conditional import TextConditional


class Flux(TextConditional):
    """Flux.1 dev and schnell: a flow, conditioned on T5 and pooled CLIP. One token packs 2×2 pixels of a latent."""

    family = "flux"
    pipelines = ("FluxPipeline",)
    known_models = (
        KnownModel("black-forest-labs/FLUX.1-schnell", "Apache-2.0"),
        KnownModel("black-forest-labs/FLUX.1-dev", "FLUX.1 dev Non-Commercial"),
    )
    conditions = ("prompt_embeds", "pooled")
    flow = True
    packing = 2
    float32_components = ("vae", "text_encoder")
    guidance = 1.0
    """Guidance scale that a guidance-distilled network gets as an input. 1 is a prediction without guidance."""

    def __init__(self, pipeline: Any, settings: ModelSettings | None = None) -> None:
        super().__init__(pipeline, settings, sample_size=pipeline.default_sample_size)
        self.max_tokens = 512 if self.network_config.guidance_embeds else 256  # schnell was trained with fewer

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.max_tokens
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

    def sampling_options(self) -> dict[str, Any]:
        """See `TextConditional.sampling_options`; the network attends to padding, so its length matters."""
        return {"max_sequence_length": self.max_tokens}

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        embeds = conditioning.tensors["prompt_embeds"].to(noisy.dtype)
        height, width = (edge // 2 for edge in noisy.shape[-2:])
        places = (torch.arange(edge, device=noisy.device) for edge in (1, height, width))
        guidance = None
        if self.network_config.guidance_embeds:
            guidance = torch.full((len(noisy),), self.guidance, device=noisy.device)
        output: Tensor = self.network(
            hidden_states=pixel_unshuffle(noisy, 2).flatten(2).mT,
            timestep=t / self.schedule.num_timesteps,
            guidance=guidance,
            pooled_projections=conditioning.tensors["pooled"].to(noisy.dtype),
            encoder_hidden_states=embeds,
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=torch.cartesian_prod(*places).to(noisy.dtype),
        ).sample
        return pixel_shuffle(output.mT.reshape(len(noisy), -1, height, width), 2)
