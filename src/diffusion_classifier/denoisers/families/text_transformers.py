"""Text-conditional diffusion transformers on latents: PixArt, Stable Diffusion 3, Flux, Sana, Lumina 2, Z-Image."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from ..base import Conditioning
from ..text_conditional import TextConditional


class _Masked(TextConditional):
    """Prompts in one encoding, with a mask of their tokens."""

    conditions = ("prompt_embeds", "mask")
    _options: Mapping[str, Any] = {}
    """Of `encode_prompt`, for prompts and not for none."""

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, **self._options
        )
        return {"prompt_embeds": embeds, "mask": mask}

    def encode_null(self) -> dict[str, Tensor]:
        """See `TextConditional.encode_null`: what guidance takes, which no instruction precedes."""
        _, _, embeds, mask = self.pipeline.encode_prompt([""], device=self.device)
        return {"prompt_embeds": embeds, "mask": mask}


class PixArt(_Masked):
    """PixArt-α and PixArt-Σ: a prompt by T5, masked; ε with learned variance.

    Args:
        pipeline: PixArtAlphaPipeline or PixArtSigmaPipeline.
    """

    family = "pixart"

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if getattr(self.network, "use_additional_conditions", False):  # PixArt-α for images of 1,024 pixels
            size, square = noisy.new_full((len(noisy), 2), self.image_size), noisy.new_ones(len(noisy), 1)
            added = {"resolution": size, "aspect_ratio": square}
        output: Tensor = self.network(
            noisy,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"].to(noisy.dtype),
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=self.schedule.network_time(t),
            added_cond_kwargs=added,
        ).sample
        return output


class StableDiffusion3(TextConditional):
    """Stable Diffusion 3 and 3.5: a prompt by two CLIPs and, unless it was left out, T5; a flow.

    Args:
        pipeline: StableDiffusion3Pipeline.
    """

    family = "stable-diffusion-3"
    conditions = ("prompt_embeds", "pooled")
    flow = True
    times = "logit-normal"
    optional = ("text_encoder_3", "tokenizer_3")

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        # CLIP's float32 would have made T5's part twice as large.
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


class Flux(TextConditional):
    """Flux.1 dev and schnell: a prompt by CLIP, pooled, and T5; a flow on 2×2 pixels of a latent packed into one token.

    Args:
        pipeline: FluxPipeline.
    """

    family = "flux"
    conditions = ("prompt_embeds", "pooled")
    flow = True
    packing = 2
    guidance = 1.0
    """What a network that was distilled from guided predictions is told: the prediction without guidance."""

    def __init__(self, pipeline: Any, image_size: int | None = None) -> None:
        super().__init__(pipeline, image_size, sample_size=pipeline.default_sample_size)
        self.max_tokens = 512 if self.network_config.guidance_embeds else 256  # schnell was trained with fewer

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.max_tokens
        )
        return {"prompt_embeds": embeds, "pooled": pooled}

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


class Sana(_Masked):
    """Sana: a prompt by Gemma, after an instruction and masked; a flow on the latents of a deep autoencoder.

    Args:
        pipeline: SanaPipeline.
    """

    family = "sana"
    flow = True

    def __init__(self, pipeline: Any, image_size: int | None = None) -> None:
        super().__init__(pipeline, image_size)
        parameters = inspect.signature(pipeline.__call__).parameters
        self._instruction: list[str] = parameters["complex_human_instruction"].default
        self._options = {"complex_human_instruction": self._instruction}

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


class Lumina2(_Masked):
    """Lumina Image 2: a prompt by Gemma, after an instruction and masked; a flow from noise, at time 0, to the image.

    Args:
        pipeline: Lumina2Pipeline.
    """

    family = "lumina-2"
    looks_at_values = True
    flow = True

    def as_read(self, prompts: list[str]) -> list[str]:
        """See `TextConditional.as_read`."""
        return [f"{self.pipeline.system_prompt} <Prompt Start> {prompt}" for prompt in prompts]

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`; the network predicts x - ε, and its time goes the other way."""
        output: Tensor = self.network(
            hidden_states=noisy,
            timestep=1 - t / self.schedule.num_timesteps,
            encoder_hidden_states=conditioning.tensors["prompt_embeds"].to(noisy.dtype),
            encoder_attention_mask=conditioning.tensors["mask"],
        ).sample
        return -output


class ZImage(TextConditional):
    """Z-Image: a prompt as Qwen is asked it; a flow from noise, at time 0, to the image.

    Args:
        pipeline: ZImagePipeline.
    """

    family = "z-image"
    looks_at_values = True
    patch_size = 2
    conditions = ("prompt_embeds", "mask")
    flow = True

    def __init__(self, pipeline: Any, image_size: int | None = None) -> None:
        # The pipeline's own default is an image of 1,024 pixels.
        super().__init__(pipeline, image_size, sample_size=1024 // pipeline.vae_scale_factor)

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
        """See `Denoiser.forward`; the network predicts x - ε, and its time goes the other way."""
        embeds = conditioning.tensors["prompt_embeds"].to(noisy.dtype)
        lengths = conditioning.tensors["mask"].sum(1).tolist()
        output: list[Tensor] = self.network(
            list(noisy.unsqueeze(2)),
            1 - t / self.schedule.num_timesteps,
            [rows[:length] for rows, length in zip(embeds, lengths, strict=True)],
        ).sample
        return -torch.stack(output).squeeze(2)
