"""Turn any conditional diffusion model into a classifier, and measure what it understands."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import DiffusionClassifier as DiffusionClassifier
    from .denoisers import Denoiser as Denoiser
    from .denoisers import load_denoiser as load_denoiser
    from .diffusion.draws import Timesteps as Timesteps
    from .errors import InputError as InputError
    from .search.classification import Classification as Classification
    from .search.shortlists import Coarse as Coarse
    from .search.shortlists import Gradient as Gradient
    from .search.shortlists import Screened as Screened
    from .search.shortlists import Tree as Tree
    from .search.strategies import Fixed as Fixed
    from .search.strategies import Sequential as Sequential
    from .search.strategies import Staged as Staged
    from .search.strategies import Strategy as Strategy

__version__ = "0.1.0"

# Without this, MKL on Intel processors that lack AVX-512 sums a row in an order that depends on its place in the batch,
# and a resumed run differs in its last bits. MKL reads the variable at its first matrix product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

_HOMES = {
    "Classification": "search.classification",
    "Coarse": "search.shortlists",
    "Denoiser": "denoisers",
    "DiffusionClassifier": "classifier",
    "Fixed": "search.strategies",
    "Gradient": "search.shortlists",
    "InputError": "errors",
    "Screened": "search.shortlists",
    "Sequential": "search.strategies",
    "Staged": "search.strategies",
    "Strategy": "search.strategies",
    "Timesteps": "diffusion.draws",
    "Tree": "search.shortlists",
    "load_denoiser": "denoisers",
}

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    # torch and diffusers take seconds to import: `diffusion-classifier --help` must not wait for them.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
