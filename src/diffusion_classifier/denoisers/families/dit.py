"""Diffusion transformers (Peebles & Xie 2023): class-conditional networks on latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor

from ...diffusion.schedules import read_scheduler
from ...errors import InputError
from .. import autoencoder
from ..base import Conditioning, KnownModel, scheduler_config
from ..class_conditional import ClassConditional
from ..class_inputs import Entry
from ..model_settings import ModelSettings


class DiT(ClassConditional):
    """A DiTTransformer2DModel on the latents of an autoencoder.

    Args:
        transformer: network. The last row of its class embeddings is the null class, and no candidate.
        vae: autoencoder.
        scheduler_config: config of the scheduler that the network was trained with.
        settings: class names, which may list synonyms as in "tench, Tinca tinca". Default: the indices.

    Raises:
        InputError: the number of class names is not the number of classes.
    """

    family = "dit"
    pipelines = ("DiTPipeline",)
    known_models = (
        KnownModel("facebook/DiT-XL-2-256", "CC-BY-NC-4.0", "1,000 of ImageNet"),
        KnownModel("facebook/DiT-XL-2-512", "CC-BY-NC-4.0", "1,000 of ImageNet"),
    )
    crop = "adm"
    guidance = 4.0

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler_config: Mapping[str, Any],
        settings: ModelSettings | None = None,
    ) -> None:
        config, settings = transformer.config, settings or ModelSettings()
        self.class_names = tuple(settings.class_names or map(str, range(config.num_embeds_ada_norm)))
        if len(self.class_names) != config.num_embeds_ada_norm:
            raise InputError(f"{len(self.class_names)} class names for {config.num_embeds_ada_norm} classes")
        super().__init__(
            {"transformer": transformer, "vae": vae},
            *read_scheduler(scheduler_config),
            *autoencoder.sizes(vae, config.sample_size, config.in_channels),
            settings,
        )
        self.null_class = config.num_embeds_ada_norm

    @classmethod
    def from_pipeline(cls, pipeline: Any, settings: ModelSettings) -> Self:
        """See `Denoiser.from_pipeline`. Class names are those of the settings, else those of the model index."""
        labels = settings.id2label
        if settings.class_names is None and labels:
            names = [labels[key] for key in sorted(labels, key=int)]
            # Two of ImageNet's classes are called "crane".
            names = [n if names.count(n) == 1 else f"{n}, class {i}" for i, n in enumerate(names)]
            settings = replace(settings, class_names=names)
        return cls(pipeline.transformer, pipeline.vae, scheduler_config(pipeline.scheduler), settings)

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled means of the autoencoder. See `Denoiser.encode`."""
        return autoencoder.encode(self._modules["vae"], images) / self.schedule.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        """Decode by the autoencoder. See `Denoiser.decode`."""
        return autoencoder.decode(self._modules["vae"], latents * self.schedule.sigma_data)

    def entries(self) -> Iterator[Entry]:
        """See `ClassConditional.entries`. Each block has its own embeddings; the last layer uses those of the first."""
        network: Any = self.network
        for block in network.transformer_blocks:
            norm = block.norm1

            def inputs(t: Tensor, labels: Tensor, norm: Any = norm) -> Tensor:
                time = norm.emb.timestep_embedder(norm.emb.time_proj(self.schedule.network_time(t)).to(network.dtype))
                return norm.silu(time[:, None] + norm.emb.class_embedder(labels))  # type: ignore[no-any-return]

            last = [network.proj_out_1] if block is network.transformer_blocks[0] else []
            yield Entry([norm.linear, *last], inputs)

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        labels = conditioning.tensors["class_labels"]
        output: Tensor = self.network(noisy, timestep=self.schedule.network_time(t), class_labels=labels).sample
        return output
