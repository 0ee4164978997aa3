"""Lumina Image 2: transformers conditioned on Gemma."""

from __future__ import annotations

from torch import Tensor

from ..base import Conditioning, KnownModel
from ..text_conditional import MaskedText


class Lumina2(MaskedText):
    """Lumina Image 2: a flow, conditioned on Gemma. An instruction precedes the prompt."""

    family = "lumina-2"
    pipelines = ("Lumina2Pipeline",)
    known_models = (KnownModel("Alpha-VLLM/Lumina-Image-2.0", "Apache-2.0"),)
    bfloat16_components = ("text_encoder",)
    looks_at_values = True
    flow = True

    def as_read(self, prompts: list[str]) -> list[str]:
        """See `TextConditional.as_read`."""
        return [f"{self.pipeline.system_prompt} <Prompt Start> {prompt}" for prompt in prompts]

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`. The network predicts x - ε, and its time runs from noise to the image."""
        output: Tensor = self.network(
            hidden_states=noisy,
            timestep=1 - t / self.schedule.num_timesteps,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"].to(noisy.dtype),
            encoder_attention_mask=conditioning.tensors["mask"],
        ).sample
        return -output
