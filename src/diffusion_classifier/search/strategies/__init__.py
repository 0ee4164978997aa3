"""Strategies decide which (class, draw) pairs to evaluate next, and when to stop. They see errors, never a network."""

from ...errors import InputError
from .base import TIE, Request, State, Strategy, replay
from .sequential import Sequential
from .staged import Fixed, Staged

__all__ = ["TIE", "Fixed", "Request", "Sequential", "Staged", "State", "Strategy", "parse_strategy", "replay"]


def parse_strategy(text: str) -> Strategy:
    """A strategy from "fixed:64", "staged:25,250/5,1", "sequential:250" or "sequential:250/0.01".

    Raises:
        InputError: none of these.
    """
    kind, _, argument = text.strip().partition(":")
    try:
        if kind == "fixed":
            return Fixed(int(argument))
        if kind == "staged":
            evaluated, kept = argument.split("/")
            return Staged(_ints(evaluated), _ints(kept))
        if kind == "sequential":
            draws, slash, error_rate = argument.partition("/")
            return Sequential(int(draws), float(error_rate)) if slash else Sequential(int(draws))
    except InputError:
        raise
    except ValueError:
        pass
    raise InputError(
        f"strategy {text!r} is not known: use fixed:DRAWS as in fixed:64, staged:DRAWS/KEPT as in staged:25,250/5,1, "
        "or sequential:DRAWS/ERROR_RATE as in sequential:250/0.01"
    )


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))
