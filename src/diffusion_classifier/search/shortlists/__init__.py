"""Shortlists decide, before the search, which classes are worth it. They work with any strategy."""

from pathlib import Path
from typing import Any

from ...errors import InputError
from .base import SearchContext, Shortlist
from .coarse import Coarse
from .gradient import Gradient
from .screened import Screened
from .tree import Tree, read_tree

__all__ = ["Coarse", "Gradient", "Screened", "SearchContext", "Shortlist", "Tree", "parse_shortlist", "read_tree"]


def parse_shortlist(text: str, keep: int | None = None) -> Shortlist:
    """Return a shortlist from "model:NAME", "coarse:SIZE", "coarse:MODEL", "tree:FILE", "gradient" or "gradient:DRAWS".

    Args:
        text: one of these.
        keep: number of classes to keep, for a tree the number of branches per level. Default: that of each kind.

    Raises:
        InputError: the text is none of these; a tree that cannot be read.
    """
    kind, _, argument = text.strip().partition(":")
    kept: dict[str, Any] = {} if keep is None else {"keep": keep}
    if kind == "model" and argument:
        return Screened(argument, **kept)
    if kind == "coarse" and argument:
        return Coarse(size=int(argument), **kept) if argument.isdecimal() else Coarse(argument, **kept)
    if kind == "tree" and argument:
        return Tree(read_tree(Path(argument)), source=argument, **kept)
    if kind == "gradient" and (argument.isdecimal() or not argument):
        return Gradient(num_draws=int(argument), **kept) if argument else Gradient(**kept)
    raise InputError(
        f"shortlist {text!r} is not known: use model:NAME for a zero-shot classifier of transformers, coarse:SIZE or "
        "coarse:MODEL, tree:FILE, or gradient:DRAWS"
    )
