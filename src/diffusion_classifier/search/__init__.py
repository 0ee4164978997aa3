"""The search for the class with the lowest error: strategies, shortlists, the engine and the posterior."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
