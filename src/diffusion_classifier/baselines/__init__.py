"""Models that classify an image in one forward pass, to compare diffusion models with."""

from .base import Baseline
from .load import find_baseline, kind_of, load_baseline

__all__ = ["Baseline", "find_baseline", "kind_of", "load_baseline"]
