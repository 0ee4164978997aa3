"""Analysis of models and runs: calibration, speed, frontiers, robustness, inversion, figures and reports."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
