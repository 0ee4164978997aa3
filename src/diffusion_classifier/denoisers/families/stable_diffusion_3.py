"""Stable Diffusion 3 and 3.5: transformers conditioned on two CLIPs and T5."""

from __future__ import annotations

from torch import Tensor

from ..base import Conditioning, KnownModel
from ..text_conditional import TextConditional


class StableDiffusion3(TextConditional):
    """Stable Diffusion 3 and 3.5: a flow, conditioned on two CLIPs and, unless it was left out, T5."""

    family = "stable-diffusion-3"
    pipelines = ("StableDiffusion3Pipeline",)
    known_models = (KnownModel("stabilityai/stable-diffusion-3.5-medium", "Stability AI Community"),)
    conditions = ("prompt_embeds", "pooled")
    flow = True
    times = "logit-normal"
    optional = ("text_encoder_3", "tokenizer_3")
    float32_components = ("vae", "text_encoder", "text_encoder_2")

    def max_patches(self) -> int | None:
        """See `TextConditional.max_patches`; the config counts patches of the table of learned positions."""
        patches: int | None = self.network_config.pos_embed_max_size
        return patches

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        # CLIP's float32 would make T5's part twice as large.
        return {"prompt_embeds": embeds.to(self.dtype), "pooled": pooled}

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        output: Tensor = self.network(
            hidden_states=noisy,
            timestep=t,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"].to(noisy.dtype),
            pooled_projections=conditioning.tensors["pooled"].to(noisy.dtype),
        ).sample
        return output
