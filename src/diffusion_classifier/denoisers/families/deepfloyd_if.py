"""Stage 1 of DeepFloyd IF: U-Nets in pixel space, conditioned on T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..base import Conditioning, KnownModel
from ..model_settings import ModelSettings
from ..text_conditional import TextConditional, check_unset


class DeepFloydIF(TextConditional):
    """Stage 1 of DeepFloyd IF: a UNet2DConditionModel on pixels, with learned variance.

    Raises:
        InputError: the network needs more than a noisy image and a prompt, as the later stages do.
    """

    family = "deepfloyd-if"
    pipelines = ("IFPipeline",)
    known_models = (KnownModel("DeepFloyd/IF-I-XL-v1.0", "DeepFloyd IF"),)
    conditions = ("prompt_embeds",)
    any_size = True
    max_tokens = 77

    def __init__(self, pipeline: Any, settings: ModelSettings | None = None) -> None:
        unet = pipeline.unet
        check_unset(unet, ("class_embed_type", "num_class_embeds", "time_cond_proj_dim"))
        super().__init__(pipeline, settings, before_the_prompt=[unet.conv_in, unet.time_embedding])

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, _ = self.pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, device=self.device)
        return {"prompt_embeds": embeds}

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        embeds = conditioning.tensors["prompt_embeds"].to(noisy.dtype)
        output: Tensor = self.network(noisy, self.schedule.network_time(t), encoder_hidden_states=embeds).sample
        return output
