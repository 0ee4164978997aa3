"""Diffusion transformers (Peebles & Xie 2023): class-conditional, on latents; what diffusers' DiTPipeline loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel
from torch import Tensor

from ...diffusion.schedules import read_scheduler
from ...errors import InputError
from .. import autoencoder
from ..base import Conditioning, scheduler_config
from ..class_conditional import ClassConditional
from ..class_inputs import Entry


class DiT(ClassConditional):
    """A DiTTransformer2DModel on the latents of an autoencoder.

    Args:
        transformer: the network. The last row of its class embeddings is the null class and no candidate.
        vae: the autoencoder.
        scheduler_config: config of the scheduler that the network was trained with.
        class_names: one name per class, which may list synonyms as in "tench, Tinca tinca"; the indices as words if
            None.

    Raises:
        InputError: the number of names is not the number of classes.
    """

    family = "dit"
    crop = "adm"
    guidance = 4.0

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL,
        scheduler_config: Mapping[str, Any],
        class_names: Sequence[str] | None = None,
    ) -> None:
        config = transformer.config
        self.class_names = tuple(class_names or map(str, range(config.num_embeds_ada_norm)))
        if len(self.class_names) != config.num_embeds_ada_norm:
            raise InputError(f"{len(self.class_names)} class names for {config.num_embeds_ada_norm} classes")
        super().__init__(
            {"transformer": transformer, "vae": vae},
            *read_scheduler(scheduler_config),
            *autoencoder.sizes(vae, config.sample_size, config.in_channels),
        )

        self.null_class = config.num_embeds_ada_norm

    @classmethod
    def from_pipeline(cls, pipeline: DiTPipeline, settings: Mapping[str, Any]) -> DiT:
        """From what `DiTPipeline` loads; names from the settings' class_names, else from the model index's id2label."""
        names, labels = settings.get("class_names"), settings.get("id2label")
        if names is None and labels:
            names = [labels[key] for key in sorted(labels, key=int)]
            # Two of ImageNet's classes are called "crane".
            names = [n if names.count(n) == 1 else f"{n}, class {i}" for i, n in enumerate(names)]
        return cls(pipeline.transformer, pipeline.vae, scheduler_config(pipeline.scheduler), names)

    def encode(self, images: Tensor) -> Tensor:
        """Scaled means of the autoencoder; see `Denoiser.encode`."""
        return autoencoder.encode(self._modules["vae"], images) / self.schedule.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        """By the autoencoder; see `Denoiser.decode`."""
        return autoencoder.decode(self._modules["vae"], latents * self.schedule.sigma_data)

    def entries(self) -> Iterator[Entry]:
        """See `ClassConditional.entries`: each block has its own embeddings, and the last layer those of the first."""
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
