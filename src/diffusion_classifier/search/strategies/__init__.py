"""Strategies decide which (class, draw) pairs to evaluate next, and when to stop. They see errors, never a network."""

from .base import TIE, Request, State, Strategy, StrategyKind, replay
from .registry import STRATEGIES, is_exhaustive, parse_strategy
from .sequential import Sequential
from .staged import Fixed, Staged

__all__ = [
    "STRATEGIES",
    "TIE",
    "Fixed",
    "Request",
    "Sequential",
    "Staged",
    "State",
    "Strategy",
    "StrategyKind",
    "is_exhaustive",
    "parse_strategy",
    "replay",
]
