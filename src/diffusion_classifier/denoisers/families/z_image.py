"""Z-Image: transformers conditioned on Qwen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..base import Conditioning, KnownModel
from ..model_settings import ModelSettings
from ..text_conditional import TextConditional


class ZImage(TextConditional):
    """Z-Image: a flow, conditioned on Qwen, which gets the prompt as a chat message."""

    family = "z-image"
    pipelines = ("ZImagePipeline",)
    known_models = (KnownModel("Tongyi-MAI/Z-Image-Turbo", "Apache-2.0"),)
    bfloat16_components = ("text_encoder",)
    looks_at_values = True
    patch_size = 2
    conditions = ("prompt_embeds", "mask")
    flow = True

    def __init__(self, pipeline: Any, settings: ModelSettings | None = None) -> None:
        # The pipeline draws images of 1,024 pixels by default.
        super().__init__(pipeline, settings, sample_size=1024 // pipeline.vae_scale_factor)

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, do_classifier_free_guidance=False)
        ((_, limit),) = self.token_limits()
        padded = torch.stack([pad(e, (0, 0, 0, limit - len(e))) for e in embeds])
        lengths = torch.tensor([len(e) for e in embeds], device=padded.device)
        return {"prompt_embeds": padded, "mask": torch.arange(limit, device=padded.device) < lengths[:, None]}

    def as_read(self, prompts: list[str]) -> list[str]:
        """See `TextConditional.as_read`."""
        return [
            self.pipeline.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for prompt in prompts
        ]

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`. The network predicts x - ε, and its time runs from noise to the image."""
        embeds = conditioning.tensors["prompt_embeds"].to(noisy.dtype)
        lengths = conditioning.tensors["mask"].sum(1).tolist()
        output: list[Tensor] = self.network(
            list(noisy.unsqueeze(2)),
            1 - t / self.schedule.num_timesteps,
            [rows[:length] for rows, length in zip(embeds, lengths, strict=True)],
        ).sample
        return -torch.stack(output).squeeze(2)
