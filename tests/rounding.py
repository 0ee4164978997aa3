"""Other last bits: what another processor, another number of threads or another library makes of the same sums.

`OTHER_BITS=1 pytest` multiplies every output of a linear or convolutional layer by 1 + 1e-6·u, where u in [-1, 1]
depends on the output's shape, the rows included. Batches of another size so differ as they do wherever another kernel
is chosen for them, only more, and batches of one size agree bit for bit. A test that fails then compares more closely
than float32 sums allow; see `tolerances`.
"""

from functools import cache
from zlib import crc32

import torch
from torch.nn.modules.module import register_module_forward_hook

from diffusion_classifier.denoisers.gaussian import Gaussian

LAYER = 2.0**-20  # sums of many terms: measured on x86-64 are half of it and less
CLOSED_FORM = 2.0**-23  # a few operations on each element: one unit in the last place


@cache
def _factors(shape, dtype, size):
    generator = torch.Generator().manual_seed(crc32(repr(shape).encode()))
    with torch.inference_mode(False):
        u = torch.rand(shape[1:], generator=generator) * 2 - 1
        if dtype == torch.float32:
            return 1 + size * u
        # In 16 bits, another float32 sum is rounded to the same number but now and then.
        rare = torch.rand(shape[1:], generator=generator) < 1 / 64
        return (1 + torch.finfo(dtype).eps * u.sign() * rare).to(dtype)


def _changed(output, size):
    kind = type(output)  # a tensor that only stands for a shape stays as it is
    if kind is not torch.Tensor or output.device.type != "cpu" or output.ndim < 2 or output.dtype == torch.float64:
        return output
    return output * _factors(tuple(output.shape), output.dtype, size)


def install():
    """For the whole process."""

    def hook(module, _, output):
        return _changed(output, LAYER) if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) else None

    register_module_forward_hook(hook)
    forward = Gaussian.forward
    Gaussian.forward = lambda *arguments: _changed(forward(*arguments), CLOSED_FORM)
