"""Load diffusion models as denoisers, and run them. `load_denoiser` finds the family of a folder or hub id."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
