"""Operations of a network call, counted without computing anything where the network allows it."""

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
    """Operations of matrix products, convolutions and attention, a multiply-add being two.

    Args:
        denoiser: whose network is called.
        conditioning: B rows.
        latent_index: (B,), int64, on the CPU: which noisy latent a row sees. Rows that calls are filled up with do not
            count.
    """
    # Such a network needs them, and may keep what it made of them for the next time.
    mode: AbstractContextManager[Any] = nullcontext()
    if not denoiser.looks_at_values:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
    # The other kernels of attention are not counted on all devices.
    kernel, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
    eager = torch.compiler.set_stance("force_eager")  # a compiled network would be given up as one that cannot be
    with eager, denoiser.prefix.shared(latent_index, denoiser.device, fill=False), mode:
        noisy = torch.zeros(len(latent_index), *denoiser.latent_shape, dtype=denoiser.dtype, device=denoiser.device)
        t = torch.zeros(len(latent_index), device=denoiser.device)
        with kernel, counter, torch.no_grad():
            denoiser.forward(noisy, t, conditioning)
    return counter.get_total_flops()


def shared_share(denoiser: Denoiser, conditioning: Conditioning) -> float:
    """The part of a prediction, of 1, that the rows of one noisy latent compute but once; counted at the first call."""
    prefix = denoiser.prefix
    if prefix.share is None:
        row, conditioning = torch.zeros(1, dtype=torch.int64), conditioning.first_prompts()
        alone = count_flops(denoiser, conditioning[row], row)
        two = count_flops(denoiser, conditioning[row.repeat(2)], row.repeat(2))
        prefix.share = share = 2 - two / alone
        return share
    return prefix.share
