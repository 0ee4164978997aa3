"""Load diffusion models as denoisers, and run them. `load_denoiser` finds the family of a folder or hub id."""

from .base import Average, Conditioning, Denoiser
from .load import load_denoiser
from .model_settings import ModelDefaults

__all__ = ["Average", "Conditioning", "Denoiser", "ModelDefaults", "load_denoiser"]
