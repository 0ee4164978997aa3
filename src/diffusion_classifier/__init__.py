"""Use any conditional diffusion model as a classifier, and evaluate how well it tells classes and captions apart."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classifier import DiffusionClassifier as DiffusionClassifier
    from .denoisers import Conditioning as Conditioning
    from .denoisers import Denoiser as Denoiser
    from .denoisers import load_denoiser as load_denoiser
    from .diffusion.draws import Timesteps as Timesteps
    from .errors import InputError as InputError
    from .search.caption_scores import CaptionScore as CaptionScore
    from .search.classification import Classification as Classification
    from .search.settings import ScoringOptions as ScoringOptions
    from .search.settings import ScoringSettings as ScoringSettings
    from .search.shortlists import Coarse as Coarse
    from .search.shortlists import Gradient as Gradient
    from .search.shortlists import Screened as Screened
    from .search.shortlists import Shortlist as Shortlist
    from .search.shortlists import Tree as Tree
    from .search.strategies import Fixed as Fixed
    from .search.strategies import Request as Request
    from .search.strategies import Sequential as Sequential
    from .search.strategies import Staged as Staged
    from .search.strategies import State as State
    from .search.strategies import Strategy as Strategy

__version__ = "0.1.0"

# Otherwise MKL, on Intel processors without AVX-512, sums a row in an order that depends on its place in the batch, and
# a resumed run differs in its last bits. MKL reads the variable at its first matrix product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

_HOMES = {
    "CaptionScore": "search.caption_scores",
    "Classification": "search.classification",
    "Coarse": "search.shortlists",
    "Conditioning": "denoisers",
    "Denoiser": "denoisers",
    "DiffusionClassifier": "classifier",
    "Fixed": "search.strategies",
    "Gradient": "search.shortlists",
    "InputError": "errors",
    "Request": "search.strategies",
    "ScoringOptions": "search.settings",
    "ScoringSettings": "search.settings",
    "Screened": "search.shortlists",
    "Sequential": "search.strategies",
    "Shortlist": "search.shortlists",
    "Staged": "search.strategies",
    "State": "search.strategies",
    "Strategy": "search.strategies",
    "Timesteps": "diffusion.draws",
    "Tree": "search.shortlists",
    "load_denoiser": "denoisers",
}
"""Map of public name to its module."""

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    # Imported at first use: torch and diffusers take seconds, and `diffusion-classifier --help` must not wait for them.
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
