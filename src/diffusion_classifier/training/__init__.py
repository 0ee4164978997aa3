"""Train models: from scratch, by LoRA, as students of a run, or on sampled images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
