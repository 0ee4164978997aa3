"""Resumed runs are bitwise identical only if the matrix products beneath them are."""

import os
import subprocess
import sys

import pytest

PROGRAM = """if True:
    import torch
    from torch.nn.functional import linear
    import diffusion_classifier
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for b, k, n in ((3, 16, 8), (7, 8, 8), (7, 64, 64), (63, 320, 100)):
        x, w, bias = (torch.randn(*shape, generator=generator) for shape in ((b, k), (n, k), (n,)))
        expected = linear(x, w, bias)
        for first in range(1, b):
            assert torch.equal(linear(x.roll(first, 0), w, bias), expected.roll(first, 0)), (b, k, n, first)
    """


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_no_bit_of_a_row_depends_on_its_place_in_the_batch(instructions):
    """MKL falls back where the processor lacks the instructions; other libraries ignore the variable."""
    environment = {k: v for k, v in os.environ.items() if k != "MKL_CBWR"} | {"MKL_ENABLE_INSTRUCTIONS": instructions}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
