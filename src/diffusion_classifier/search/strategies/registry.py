"""The strategies that can be named in text, such as on the command line or in a model's folder."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

from ...errors import InputError
from .base import Strategy, StrategyKind
from .sequential import Sequential
from .staged import Fixed, Staged

STRATEGIES: dict[str, StrategyKind] = {"fixed": Fixed, "staged": Staged, "sequential": Sequential}
"""Kind → class. Installed packages add to it by entry points of the group `GROUP`."""
GROUP = "diffusion_classifier.strategies"
"""Group of entry points whose names are kinds and whose objects are classes as `StrategyKind` describes them."""


def parse_strategy(text: str) -> Strategy:
    """Return a strategy from text such as "fixed:64", "staged:25,250/5,1", "sequential:250" or "sequential:250/0.01".

    Raises:
        InputError: the kind is not known, its argument cannot be read, or a value is out of range.
    """
    kind, _, argument = text.strip().partition(":")
    found = STRATEGIES.get(kind) or next((plugin for name, plugin in _plugins(kind)), None)
    if found is not None:
        try:
            return found.parse(argument)
        except InputError:
            raise
        except ValueError:
            pass
    usages = [known.usage for known in (*STRATEGIES.values(), *(plugin for _, plugin in _plugins()))]
    raise InputError(f"strategy {text!r} is not known: use {', '.join(usages[:-1])}, or {usages[-1]}")


def is_exhaustive(text: str) -> bool:
    """Whether the strategy of this spelling is known to give every class every draw."""
    try:
        return parse_strategy(text).exhaustive
    except InputError:
        return False


def _plugins(kind: str | None = None) -> Iterator[tuple[str, StrategyKind]]:
    """Load the strategies of entry points, or the one of this kind only.

    Raises:
        InputError: an entry point cannot be loaded.
    """
    for entry in entry_points(group=GROUP):
        if kind is None or entry.name == kind:
            try:
                yield entry.name, entry.load()
            except (ImportError, AttributeError) as e:
                raise InputError(f"the strategy {entry.name} of {entry.value} cannot be loaded: {e}") from e
