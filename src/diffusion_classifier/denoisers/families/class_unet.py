"""Class-conditional U-Nets in pixel space: UNet2DModel, with or without a trunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from ...diffusion.schedules import read_scheduler
from ...errors import InputError
from ..base import Conditioning, scheduler_config
from ..class_conditional import ClassConditional
from ..class_inputs import Entry
from ..devices import to_device
from ..model_settings import ModelSettings
from ..shared_prefix import Prefix
from .late import LateConditioned, LateConditionedPipeline, Trunk

_TRUNK_ROWS = 8
"""Number of latents per call of a trunk, if no bit may depend on the number of latents in a batch."""
_LUMA = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)  # ITU-R BT.601, as Pillow's mode L


def _before_the_class(unet: UNet2DModel) -> list[torch.nn.Module]:
    """Return the convolutions before the class embedding is added."""
    block = unet.down_blocks[0].resnets[0]
    return [unet.conv_in, *([block.conv1] if isinstance(block, ResnetBlock2D) else [])]


class ClassUNet(ClassConditional):
    """A UNet2DModel on pixels, or on pixels folded into channels.

    Args:
        unet: network with class embeddings. If it has one row more than there are class names, that is the null class.
        scheduler_config: config of the scheduler that the network was trained with.
        settings: class names, which are the indices by default, and patch size p: the network takes p×p pixels as p²
            channels (pixel unshuffle), which is exact and has no parameters.
        trunk: network without classes, whose output `unet` takes beside the image; see `late`.

    Raises:
        InputError: the network is unconditional, does not state the size of its images, or has channels that do not
            fit the patch size.
    """

    family = "class-unet"
    pipelines = ("DDPMPipeline", "DDIMPipeline", LateConditionedPipeline.__name__)
    any_size = True

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler_config: Mapping[str, Any],
        settings: ModelSettings | None = None,
        trunk: Trunk | None = None,
    ) -> None:
        config, settings = unet.config, settings or ModelSettings()
        patch_size = settings.patch_size
        if config.num_class_embeds is None:
            raise InputError(
                "this UNet2DModel is unconditional (num_class_embeds is not set): it has no classes to compare"
            )
        if not isinstance(patch_size, int) or patch_size < 1:
            raise InputError(f"the patch size must be a whole number from 1; got {patch_size!r}")
        if not isinstance(config.sample_size, int):
            raise InputError(
                f"the config of a UNet2DModel must state its sample_size as a whole number; got {config.sample_size}"
            )
        in_channels = config.in_channels - (0 if trunk is None else trunk.config.out_channels)
        channels, rest = divmod(in_channels, patch_size**2)
        if rest or channels not in (1, 3):
            raise InputError(f"{in_channels} input channels are not 1 or 3 times the patch size {patch_size} squared")
        self.class_names = tuple(settings.class_names or map(str, range(config.num_class_embeds)))
        if len(self.class_names) not in (config.num_class_embeds, config.num_class_embeds - 1):
            raise InputError(f"{len(self.class_names)} class names for {config.num_class_embeds} class embeddings")
        self.null_class = len(self.class_names) if len(self.class_names) < config.num_class_embeds else None
        self.patch_size = patch_size
        self.channels = channels
        schedule, prediction_type = read_scheduler(scheduler_config)
        size = config.sample_size
        network = unet if trunk is None else LateConditioned(trunk, unet)
        shape = (in_channels, size, size)
        super().__init__({"unet": network}, schedule, prediction_type, shape, size * patch_size, settings)
        self._conditioned, self._trunk = unet, trunk
        if trunk is not None:
            self.prefix = Prefix([trunk, *_before_the_class(unet)], [trunk], _TRUNK_ROWS)

    @classmethod
    def from_pipeline(cls, pipeline: Any, settings: ModelSettings) -> Self:
        """See `Denoiser.from_pipeline`."""
        return cls(pipeline.unet, scheduler_config(pipeline.scheduler), settings, getattr(pipeline, "trunk", None))

    def compile(self) -> None:
        """See `Denoiser.compile`. A trunk is shared and not compiled, because it has few rows, whose number varies."""
        if self._trunk is None:
            super().compile()
        else:
            self.prefix.remove(but=[self._trunk])
            self._conditioned.compile(dynamic=False)
            self.compiled = True

    def encode(self, images: Tensor) -> Tensor:
        """Return the pixels, as luma if the network has one channel. See `Denoiser.encode`."""
        if self.channels == 1:
            images = (images * to_device(_LUMA, images.device)).sum(1, keepdim=True)
        return torch.nn.functional.pixel_unshuffle(images.float(), self.patch_size) / self.schedule.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels. See `Denoiser.decode`."""
        return torch.nn.functional.pixel_shuffle(latents * self.schedule.sigma_data, self.patch_size)

    def entries(self) -> Iterator[Entry]:
        """See `ClassConditional.entries`. All residual blocks take the activated sum of both embeddings."""
        unet: Any = self._conditioned
        if unet.config.class_embed_type is not None:
            kind = unet.config.class_embed_type
            raise InputError(f"classes enter this U-Net as {kind!r}, not by embeddings: no shortlist by their gradient")
        blocks = [module for module in unet.modules() if isinstance(module, ResnetBlock2D)]

        def inputs(t: Tensor, labels: Tensor) -> Tensor:
            time = unet.time_embedding(unet.time_proj(self.schedule.network_time(t)).to(unet.dtype))
            return blocks[0].nonlinearity(time[:, None] + unet.class_embedding(labels))  # type: ignore[no-any-return]

        yield Entry([block.time_emb_proj for block in blocks], inputs)

    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """See `Denoiser.forward`."""
        output: Tensor = self.network(
            noisy, self.schedule.network_time(t), class_labels=conditioning.tensors["class_labels"]
        ).sample
        return output
