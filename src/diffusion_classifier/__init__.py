"""Turn any conditional diffusion model into a classifier, and measure what it understands."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import DiffusionClassifier as DiffusionClassifier
    from .denoisers import Denoiser as Denoiser
    from .denoisers import load_denoiser as load_denoiser
    from .draws import Timesteps as Timesteps
    from .exceptions import InputError as InputError
    from .posterior import Classification as Classification
    from .shortlists import Coarse as Coarse
    from .shortlists import Gradient as Gradient
    from .shortlists import Screened as Screened
    from .shortlists import Tree as Tree
    from .strategies import Fixed as Fixed
    from .strategies import Sequential as Sequential
    from .strategies import Staged as Staged
    from .strategies import Strategy as Strategy

__version__ = "0.1.0"

# Without this, MKL on Intel processors that lack AVX-512 sums a row in an order that depends on its place in the batch,
# and a resumed run differs in its last bits. MKL reads the variable at its first matrix product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

_HOMES = {
    "Classification": "posterior",
    "Coarse": "shortlists",
    "Denoiser": "denoisers",
    "DiffusionClassifier": "classifier",
    "Fixed": "strategies",
    "Gradient": "shortlists",
    "InputError": "exceptions",
    "Screened": "shortlists",
    "Sequential": "strategies",
    "Staged": "strategies",
    "Strategy": "strategies",
    "Timesteps": "draws",
    "Tree": "shortlists",
    "load_denoiser": "denoisers",
}

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import: `diffusion-classifier --help` must not wait for them.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
