"""Late conditioning: a shared backbone (trunk) that runs once per noisy latent, and a small class-conditional head.

The trunk is a U-Net or a transformer. Transformers of diffusers have classes, and the trunk always gets the null class.

Shape legend: U noisy latents, B rows of the head, B / U rows per latent.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, SchedulerMixin, UNet2DModel
from torch import Tensor

Trunk: TypeAlias = UNet2DModel | DiTTransformer2DModel


class LateConditionedPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Pipeline that saves and loads a network with late conditioning. Each part is a module of diffusers.

    Args:
        trunk: network without classes.
        unet: head with class embeddings. It takes the noisy image and, as further channels, the trunk's output.
        scheduler: scheduler that both were trained with.
    """

    def __init__(self, trunk: Trunk, unet: UNet2DModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(trunk=trunk, unet=unet, scheduler=scheduler)


class LateConditioned(torch.nn.Module):
    """Trunk and head as one network.

    Args:
        trunk: see `LateConditionedPipeline`.
        head: `unet` there.
    """

    def __init__(self, trunk: Trunk, head: UNet2DModel) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    @property
    def config(self) -> dict[str, Any]:
        """Configs of both parts."""
        parts: dict[str, Any] = dict(self.named_children())
        return {name: dict(part.config) for name, part in parts.items()}

    def forward(self, noisy: Tensor, t: Tensor, class_labels: Tensor) -> SimpleNamespace:
        """Return `sample` (B, *), as UNet2DModel does. Row b gets latent b // (B / U).

        Args:
            noisy: (U, *).
            t: (U,).
            class_labels: (B,).
        """
        classless = {}
        if isinstance(self.trunk, DiTTransformer2DModel):
            null = self.trunk.config.num_embeds_ada_norm
            classless["class_labels"] = torch.full_like(t, null, dtype=torch.int64)
        seen = torch.cat([noisy, self.trunk(noisy, t, **classless, return_dict=False)[0]], dim=1)
        each = len(class_labels) // len(noisy)
        if each > 1:
            seen, t = seen.repeat_interleave(each, 0), t.repeat_interleave(each, 0)
        return SimpleNamespace(sample=self.head(seen, t, class_labels=class_labels).sample)
