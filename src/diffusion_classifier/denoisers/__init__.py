"""Denoisers: one module a model family. `load_denoiser` finds the family of a folder or hub id by itself."""

from .base import Average, Conditioning, Denoiser, ModelDefaults
from .load import load_denoiser

__all__ = ["Average", "Conditioning", "Denoiser", "ModelDefaults", "load_denoiser"]
