"""Benchmarks by name: the data set, its class names, prompts, and the settings that were published."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
