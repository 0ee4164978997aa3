"""Stable Diffusion 1 and 2: text-conditional U-Nets on latents; what diffusers' StableDiffusionPipeline loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import Transformer2DModel
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

from ..exceptions import InputError
from ..schedules import read_scheduler
from . import autoencoder
from .base import Conditioning, Denoiser, scheduler_config, without_advice
from .prefix import Prefix

if TYPE_CHECKING:  # importing the pipeline prints what image processors, not used here, would need
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_PROMPT_BATCH = 64


class StableDiffusion(Denoiser):
    """A UNet2DConditionModel on the latents of an autoencoder, conditioned on the words of a prompt.

    Args:
        unet: the network.
        vae: the autoencoder.
        text_encoder: of the prompts.
        tokenizer: of the prompts.
        scheduler_config: config of the scheduler that the network was trained with.

    Raises:
        InputError: the network needs more than a noisy latent and a prompt.
    """

    family = "stable-diffusion"
    any_size = True

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler_config: Mapping[str, Any],
    ) -> None:
        config = unet.config
        if config.in_channels != vae.config.latent_channels:
            raise InputError(
                f"the UNet reads {config.in_channels} channels where a latent has {vae.config.latent_channels}: "
                "inpainting, depth and upscaling models need a second image and cannot classify"
            )
        for name in ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type"):
            if config.get(name) is not None:
                raise InputError(
                    f"the UNet has {name} {config[name]!r}: it needs more than a prompt, which is not supported"
                )
        super().__init__(
            {"unet": unet, "vae": vae, "text_encoder": text_encoder},
            *read_scheduler(scheduler_config),
            *autoencoder.sizes(vae, config.sample_size),
        )
        self.tokenizer = tokenizer
        self.prefix = Prefix(_before_the_prompt(unet))

    @classmethod
    def from_pipeline(cls, pipeline: StableDiffusionPipeline, settings: Mapping[str, Any]) -> StableDiffusion:  # noqa: ARG003
        """From what `StableDiffusionPipeline` loads."""
        return cls(
            pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, scheduler_config(pipeline.scheduler)
        )

    def encode(self, images: Tensor) -> Tensor:
        """Scaled means of the autoencoder; see `Denoiser.encode`."""
        return autoencoder.encode(self._modules["vae"], images)

    @torch.no_grad()
    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """Embeddings of prompts, each class being one, as `StableDiffusionPipeline.encode_prompt` makes them.

        Raises:
            InputError: a class is no text, or a prompt is too long. None is ever cut short.
        """
        prompts = [c for c in classes if isinstance(c, str)]
        if len(prompts) < len(classes):
            raise InputError("this model reads text: give it words rather than class indices")
        # A pipeline may have been saved with tokens learned by textual inversion.
        with without_advice():  # on prompts that are too long, which are refused below
            words = TextualInversionLoaderMixin().maybe_convert_prompt(prompts, self.tokenizer)
        limit = self.tokenizer.model_max_length
        tokens = self.tokenizer(words, padding="max_length", max_length=limit)
        for prompt, ids in zip(prompts, tokens.input_ids, strict=True):
            if len(ids) > limit:
                raise InputError(
                    f"the prompt {prompt!r} is {len(ids) - limit} tokens too long: it has {len(ids)}, start and end "
                    f"included, and this model reads {limit}"
                )
        encoder = self._modules["text_encoder"]
        ids, mask = (torch.tensor(v, device=self.device) for v in (tokens.input_ids, tokens.attention_mask))
        use_mask = getattr(encoder.config, "use_attention_mask", False)
        batches = [slice(i, i + _PROMPT_BATCH) for i in range(0, len(prompts), _PROMPT_BATCH)]
        embeds = [encoder(ids[rows], attention_mask=mask[rows] if use_mask else None)[0] for rows in batches]
        return Conditioning({"prompt_embeds": torch.cat(embeds)})

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        embeds = conditioning.tensors["prompt_embeds"].to(noisy.dtype)
        output: Tensor = self.network(noisy, t, encoder_hidden_states=embeds).sample
        return output


def _before_the_prompt(unet: UNet2DConditionModel) -> Iterator[torch.nn.Module]:
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
