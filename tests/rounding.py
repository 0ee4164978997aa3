"""Perturb the last bits of network outputs, to simulate another processor, thread count or library version.

`OTHER_BITS=1 pytest` multiplies every output of a linear or convolutional layer by 1 + 1e-6·u. The factor u in [-1, 1]
depends on the shape of the output, including the number of rows. Batches of different sizes then differ as they do with
other kernels, only more; batches of one size stay bitwise identical. A test that fails under it compares more closely
than float32 sums allow: use a tolerance of `tolerances`.
"""

from functools import cache
from zlib import crc32

import torch
from torch.nn.modules.module import register_module_forward_hook

from diffusion_classifier.denoisers.families.gaussian import Gaussian

LAYER = 2.0**-20  # relative; twice the difference between batch sizes and instruction sets on x86-64
CLOSED_FORM = 2.0**-23  # one unit in the last place: a few elementwise operations, no sum


@cache
def _factors(shape, dtype, size):
    generator = torch.Generator().manual_seed(crc32(repr(shape).encode()))
    with torch.inference_mode(False):
        u = torch.rand(shape[1:], generator=generator) * 2 - 1
        if dtype == torch.float32:
            return 1 + size * u
        # Another float32 sum rarely rounds to another 16-bit number.
        rare = torch.rand(shape[1:], generator=generator) < 1 / 64
        return (1 + torch.finfo(dtype).eps * u.sign() * rare).to(dtype)


def _changed(output, size):
    # Fake tensors, which serve to count operations, have no values.
    if (
        type(output) is not torch.Tensor
        or output.device.type != "cpu"
        or output.ndim < 2
        or output.dtype == torch.float64
    ):
        return output
    return output * _factors(tuple(output.shape), output.dtype, size)


def install():
    """Perturb the outputs of all networks in this process."""

    def hook(module, _, output):
        return _changed(output, LAYER) if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) else None

    register_module_forward_hook(hook)
    forward = Gaussian.forward
    Gaussian.forward = lambda *arguments: _changed(forward(*arguments), CLOSED_FORM)
