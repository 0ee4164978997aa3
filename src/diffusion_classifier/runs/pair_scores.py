"""Scores of caption tasks: accuracy over single images, and Winoground's scores over pairs with the same two captions.

Scores of a pair (Thrush et al. 2022, "Winoground", section 4; paper, equation 9), where s(C, I) says how well caption C
matches image I:

    text score:    s(C₀, I₀) > s(C₁, I₀)  and  s(C₁, I₁) > s(C₀, I₁)
    image score:   s(C₀, I₀) > s(C₀, I₁)  and  s(C₁, I₁) > s(C₁, I₀)
    group score:   both

The text score compares the captions of one image, and follows from the predictions. The image score compares one
caption over two images, and follows from `ResultRow.match_scores`. A tie counts as wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..metrics import Interval, share_interval
from .row import ResultRow

CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""Scores of a pair by chance: all orders of the four s are equally likely."""


@dataclass(frozen=True)
class Scores:
    """Scores over some examples.

    Args:
        num_examples: number of images, or of pairs.
        shares: name of the score → share of successes with its 95% Wilson interval: "accuracy" for images; "text",
            "image" and "group" for pairs, the last two if all match scores are known.
        chance: name of the score → expected share for random predictions.
    """

    num_examples: int
    shares: dict[str, Interval]
    chance: dict[str, float]


@dataclass(frozen=True)
class Composition:
    """Scores of a run whose images have captions of their own.

    Args:
        paired: whether images come in pairs.
        overall: over all examples.
        by_tag: over the examples with each tag.
        num_incomplete: number of pairs with a failed or unfinished image, which are left out.
        note: what the image score of pairs compares, or why it is unknown.
    """

    paired: bool
    overall: Scores
    by_tag: dict[str, Scores]
    num_incomplete: int = 0
    note: str = ""


def pairs_of(rows: Iterable[ResultRow]) -> dict[str, tuple[ResultRow, ResultRow]]:
    """Return example → rows of its two images, for the pairs that are complete."""
    found: dict[str, dict[str, ResultRow]] = {}
    for row in rows:
        if row.done:
            example, _, which = row.id.rpartition("/")
            found.setdefault(example, {})[which] = row
    return {example: (pair["0"], pair["1"]) for example, pair in found.items() if len(pair) == 2}


def pair_scores(pair: tuple[ResultRow, ResultRow]) -> dict[str, bool]:
    """Return name of the score → success; without image and group score if a match score is unknown."""
    text = all(row.is_correct for row in pair)
    tables = [
        dict(zip(row.candidates or (), row.match_scores, strict=True)) for row in pair if row.match_scores is not None
    ]
    if len(tables) < len(pair):
        return {"text": text}
    image = all(tables[k][str(row.truth)] > tables[1 - k][str(row.truth)] for k, row in enumerate(pair))
    return {"text": text, "image": image, "group": text and image}


def compose(rows: Sequence[ResultRow], paired: bool, note: str = "") -> Composition:
    """Compute the scores of a run; there are none if no example is complete.

    Args:
        rows: rows of the run with id, truth, prediction, status, candidates, tag and match_scores.
        paired: whether the images come in pairs.
        note: see `Composition`.
    """
    tagged: list[tuple[str | None, dict[str, bool], float]] = []
    incomplete = 0
    if paired:
        pairs = pairs_of(rows)
        incomplete = len({row.id.rpartition("/")[0] for row in rows}) - len(pairs)
        tagged = [(pair[0].tag, pair_scores(pair), 0.0) for pair in pairs.values()]
    else:
        tagged = [
            (row.tag, {"accuracy": row.is_correct}, 1 / len(row.candidates))
            for row in rows
            if row.done and row.candidates
        ]
    if not tagged:
        return Composition(paired, Scores(0, {}, {}), {}, incomplete, note)
    known = set.intersection(*(set(hits) for _, hits, _ in tagged))

    def scores(some: Sequence[tuple[str | None, dict[str, bool], float]]) -> Scores:
        names = [name for name in ("accuracy", *CHANCE) if name in known]
        shares = {name: share_interval(torch.tensor([hits[name] for _, hits, _ in some])) for name in names}
        by_chance = sum(chance for _, _, chance in some) / len(some)
        return Scores(len(some), shares, {name: CHANCE.get(name, by_chance) for name in names})

    tags = sorted({tag for tag, _, _ in tagged if tag is not None})
    by_tag = {tag: scores([one for one in tagged if one[0] == tag]) for tag in tags}
    return Composition(paired, scores(tagged), by_tag, incomplete, note)
