"""PixArt-α and PixArt-Σ: transformers conditioned on T5."""

from __future__ import annotations

from torch import Tensor

from ..base import Conditioning, KnownModel
from ..text_conditional import MaskedText


class PixArt(MaskedText):
    """PixArt-α and PixArt-Σ, conditioned on a masked T5 encoding. The network predicts ε and its variance."""

    family = "pixart"
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    known_models = (KnownModel("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "CreativeML OpenRAIL++-M"),)

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if getattr(self.network, "use_additional_conditions", False):  # PixArt-α at 1,024 pixels
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
