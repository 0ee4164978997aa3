"""Use any conditional diffusion model as a classifier, and evaluate how well it tells classes and captions apart."""

import os

import lazy_loader

__version__ = "0.1.0"

# Otherwise MKL, on Intel processors without AVX-512, sums a row in an order that depends on its place in the batch, and
# a resumed run differs in its last bits. MKL reads the variable at its first matrix product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# torch and diffusers take seconds to import: `diffusion-classifier --help` must not wait for them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
