"""Count the operations of a network call, without computing anything if the network allows that."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .base import Conditioning, Denoiser


def count_flops(denoiser: Denoiser, conditioning: Conditioning, latent_index: Tensor) -> int:
    """Count the operations of matrix products, convolutions and attention. A multiply-add counts as two.

    Args:
        denoiser: denoiser whose network is called.
        conditioning: B rows.
        latent_index: (B,), int64, on the CPU: index of the noisy latent of each row. Rows that fill up calls are not
            counted.
    """
    # A network that looks at values needs real ones, and may cache what it computes from them.
    mode: AbstractContextManager[Any] = nullcontext()
    if not denoiser.looks_at_values:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Other attention kernels are not counted on all devices.
    kernel, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
    eager = torch.compiler.set_stance("force_eager")  # else torch.compile would give up on a compiled network
    with eager, denoiser.prefix.shared(latent_index, denoiser.device, fill=False), mode:
        noisy = torch.zeros(len(latent_index), *denoiser.latent_shape, dtype=denoiser.dtype, device=denoiser.device)
        t = torch.zeros(len(latent_index), device=denoiser.device)
        with kernel, counter, torch.no_grad():
            denoiser.forward(noisy, t, conditioning)
    return counter.get_total_flops()


def shared_share(denoiser: Denoiser, conditioning: Conditioning) -> float:
    """Return the share of a prediction that rows of one noisy latent compute only once; counted at the first call."""
    prefix = denoiser.prefix
    if prefix.share is None:
        row, conditioning = torch.zeros(1, dtype=torch.int64), conditioning.first_prompts()
        alone = count_flops(denoiser, conditioning[row], row)
        two = count_flops(denoiser, conditioning[row.repeat(2)], row.repeat(2))
        prefix.share = share = 2 - two / alone
        return share
    return prefix.share
