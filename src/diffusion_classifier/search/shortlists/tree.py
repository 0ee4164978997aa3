"""Shortlist by superclasses: a few draws eliminate whole branches of a tree of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch

from ...denoisers.base import Conditioning
from ...errors import InputError
from ..jobs import Cost, ImageJob
from .base import SearchContext, by_mean_error, narrowed

Branches: TypeAlias = Mapping[str, Any]
"""Map of superclass to its own branches or to a list of classes: {"animal": {"dog": ["pug", "beagle"]}, …}."""


@dataclass(frozen=True)
class Tree:
    """Keep the classes below the best superclasses, level by level of a tree.

    Superclasses are compared by prompts made of their names, with the template of the classes. This needs a
    text-to-image model. A class on the same level as superclasses competes with them under its own name.

    Args:
        branches: the tree; see `Branches` and `read_tree`.
        keep: number of branches to follow per level; more if fewer than two classes would be left.
        num_draws: draws per branch.
        source: where the tree is from, for `str()`.

    Raises:
        InputError: keep < 1.
    """

    wants_pictures: ClassVar[bool] = False
    branches: Branches
    keep: int = 2
    num_draws: int = 8
    source: str = "…"

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise InputError(f"at least 1 branch must be followed; got {self.keep}")

    def narrow(self, context: SearchContext, jobs: Iterator[ImageJob]) -> Iterator[ImageJob]:
        """See `Shortlist.narrow`.

        Raises:
            InputError: the model is class-conditional; the tree lacks a class, or has one twice.
        """
        if context.denoiser.class_names is not None:
            raise InputError("this model is class-conditional, not text-to-image: it has no prompts for superclasses")
        context.check_draws(self.num_draws)
        levels = _levels(self.branches, context.class_names)
        if not levels:
            raise InputError("the tree of labels has a single branch: there is nothing to choose")
        for level in levels:
            jobs = self._step(context, jobs, level, context.condition(context.denoiser, level.names))
        return jobs

    def _step(
        self, context: SearchContext, jobs: Iterator[ImageJob], level: _Level, conditioning: Conditioning
    ) -> Iterator[ImageJob]:
        waiting: dict[str, ImageJob] = {}
        settled: list[ImageJob] = []  # images whose classes are all below a single node
        below = level.below

        def nodes() -> Iterator[ImageJob]:
            for job in jobs:
                # The nodes above the remaining classes.
                over = None if job.candidates is None else below[:, job.candidates].any(1).nonzero().squeeze(1)
                if over is not None and len(over) == 1:
                    settled.append(job)
                    continue
                waiting[job.name] = job
                yield replace(job, candidates=over, cost=Cost())

        for name, means, cost in by_mean_error(context, context.scorer, nodes(), conditioning, self.num_draws):
            yield from settled
            settled.clear()
            job = waiting.pop(name)
            if bool(means.isnan().any()):
                yield narrowed(job, means, 1, cost)
                continue
            keep = min(self.keep, int(means.isfinite().sum()))
            while True:
                found = narrowed(job, means, keep, cost)
                left = below[found.candidates].any(0)
                if job.candidates is not None:
                    left &= torch.zeros_like(left).index_fill(0, job.candidates, True)
                if left.sum() > 1:
                    yield replace(found, candidates=left.nonzero().squeeze(1))
                    break
                keep += 1
        yield from settled

    def __str__(self) -> str:
        """tree:FILE."""
        return f"tree:{self.source}"


@dataclass(frozen=True)
class _Level:
    """Nodes at one depth, and classes that end above it. `below` (nodes, K), bool: which classes are below each."""

    names: tuple[str, ...]
    below: torch.Tensor


def read_tree(file: Path) -> Branches:
    """Return the tree of a JSON file of `Branches`, or of lines "child<TAB>parent" as in WordNet's is-a relation.

    Raises:
        InputError: the file cannot be read, has another format, or holds a circle or a child of two parents.
    """
    try:
        text = file.read_text("utf-8-sig")
        content = json.loads(text) if text.lstrip().startswith("{") else _from_pairs(text.splitlines())
    except (OSError, ValueError) as e:
        raise InputError(f"{file} cannot be read as a tree of labels: {e}") from e
    assert isinstance(content, dict)
    return content


def _from_pairs(lines: Sequence[str]) -> Branches:
    parent: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        child, tab, over = line.partition("\t")
        child, over = child.strip(), over.strip()
        if not tab or not child or not over:
            raise ValueError(f"line {number} is not a child, a tab and its parent: {line!r}")
        if parent.setdefault(child, over) != over:
            raise ValueError(f"{child!r} has two parents, {parent[child]!r} and {over!r}")
    children: dict[str, list[str]] = {}
    for child, over in parent.items():
        children.setdefault(over, []).append(child)
    roots = [name for name in children if name not in parent]
    if not roots:
        raise ValueError("it has no root" if parent else "it is empty")

    def grown(name: str) -> Any:
        return {child: grown(child) if child in children else [] for child in children[name]}

    reached: list[str] = list(roots)
    for name in reached:
        reached += children.get(name, [])
    if len(reached) < len(parent.keys() | set(roots)):
        raise ValueError("it holds a circle")
    return {root: grown(root) for root in roots}


def _levels(branches: Branches, class_names: Sequence[str]) -> list[_Level]:
    """Return the levels with more than one node, from the top down, without the level of all classes."""
    column = {name.lower(): i for i, name in enumerate(class_names)}
    seen: set[int] = set()
    paths: list[list[tuple[str, ...]]] = [[] for _ in class_names]  # nodes from the top to each class, as paths

    def walk(node: Any, path: tuple[str, ...]) -> None:
        for name, inner in node.items() if isinstance(node, Mapping) else ((name, ()) for name in node):
            if not isinstance(name, str) or not isinstance(inner, Mapping | list | tuple):
                raise InputError(f"a tree of labels holds objects, and lists of names; got {name!r}: {inner!r}")
            i = column.get(name.lower())
            if i is not None and not inner:
                if i in seen:
                    raise InputError(f"the tree of labels has the class {class_names[i]!r} twice")
                seen.add(i)
                paths[i] = [(*path, name)[: d + 1] for d in range(len(path) + 1)]
            walk(inner, (*path, name))

    walk(branches, ())
    if missing := [name for i, name in enumerate(class_names) if i not in seen]:
        raise InputError(f"the tree of labels lacks {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}")
    levels = []
    for depth in range(max(map(len, paths)) - 1):
        at = [path[min(depth, len(path) - 1)] for path in paths]
        nodes = list(dict.fromkeys(at))
        if len(nodes) > 1:
            below = torch.tensor([[node == own for own in at] for node in nodes])
            levels.append(_Level(tuple(node[-1] for node in nodes), below))
    return levels
