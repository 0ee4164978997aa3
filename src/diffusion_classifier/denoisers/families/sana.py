"""Sana: linear transformers conditioned on Gemma."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..base import Conditioning, KnownModel
from ..model_settings import ModelSettings
from ..text_conditional import MaskedText


class Sana(MaskedText):
    """Sana: a flow on the latents of a deep autoencoder, conditioned on Gemma. An instruction precedes the prompt."""

    family = "sana"
    pipelines = ("SanaPipeline",)
    known_models = (KnownModel("Efficient-Large-Model/Sana_1600M_1024px_diffusers", "NSCL v2"),)
    flow = True
    autoencoder_widths = "encoder_block_out_channels"
    bfloat16_components = ("text_encoder",)

    def __init__(self, pipeline: Any, settings: ModelSettings | None = None) -> None:
        super().__init__(pipeline, settings)
        parameters = inspect.signature(pipeline.__call__).parameters
        self._instruction: list[str] = parameters["complex_human_instruction"].default
        self.prompt_options = {"complex_human_instruction": self._instruction}

    def as_read(self, prompts: list[str]) -> list[str]:
        """See `TextConditional.as_read`."""
        return ["\n".join(self._instruction) + prompt for prompt in super().as_read(prompts)]

    def token_limits(self) -> Iterator[tuple[Any, int]]:
        """See `TextConditional.token_limits`."""
        for tokenizer, limit in super().token_limits():
            yield tokenizer, limit - 2 + len(tokenizer.encode("\n".join(self._instruction)))

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        output: Tensor = self.network(
            noisy,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"].to(noisy.dtype),
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=t * self.network_config.timestep_scale,
        ).sample
        return output
