"""How well a model tells true captions from false ones, and pairs of images with the same two captions from each other.

Of a pair (Thrush et al. 2022, "Winoground", section 4; paper, equation 9), s being how well a caption fits an image:

    text score:    s(C₀, I₀) > s(C₁, I₀)  and  s(C₁, I₁) > s(C₀, I₁)
    image score:   s(C₀, I₀) > s(C₀, I₁)  and  s(C₁, I₁) > s(C₁, I₀)
    group score:   both

The text score compares captions of one image, and is taken from the answers. The image score compares one caption over
two images, and is taken from `fits`, see `runs.SCHEMA`. A tie is no success.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..metrics import Interval, share_interval

Row = Mapping[str, Any]

CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""Of a pair, where all orders of the four s are equally likely."""


@dataclass(frozen=True)
class Scores:
    """Of some examples.

    Args:
        num_examples: images, or pairs.
        shares: name of the score → share of successes with the ends of Wilson's 95 % interval: "accuracy" of images;
            "text", "image" and "group" of pairs, the last two where they are known of all.
        chance: the same of answers by chance.
    """

    num_examples: int
    shares: dict[str, Interval]
    chance: dict[str, float]


@dataclass(frozen=True)
class Composition:
    """Of a run whose images have captions of their own.

    Args:
        paired: whether images come in pairs.
        overall: of all examples.
        by_tag: of those with each tag.
        num_incomplete: pairs of which an image is not done or failed; they do not count.
        note: what the image score of pairs compares, or why there is none.
    """

    paired: bool
    overall: Scores
    by_tag: dict[str, Scores]
    num_incomplete: int = 0
    note: str = ""


def pairs_of(rows: Iterable[Row]) -> dict[str, tuple[Row, Row]]:
    """Example → rows of its two images, where both are done."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["status"] == "done":
            example, _, which = row["id"].rpartition("/")
            found.setdefault(example, {})[which] = row
    return {example: (pair["0"], pair["1"]) for example, pair in found.items() if len(pair) == 2}


def is_right(row: Row) -> bool:
    """Whether the true caption was chosen."""
    return bool(row["prediction"] == row["label"])


def pair_scores(pair: tuple[Row, Row]) -> dict[str, bool]:
    """Score → whether the pair has it; without image and group score where fits are not known."""
    text = all(map(is_right, pair))
    if any(row["fits"] is None for row in pair):
        return {"text": text}
    fits = [dict(zip(row["candidates"], row["fits"], strict=True)) for row in pair]
    image = all(fits[k][row["label"]] > fits[1 - k][row["label"]] for k, row in enumerate(pair))
    return {"text": text, "image": image, "group": text and image}


def compose(rows: Sequence[Row], paired: bool, note: str = "") -> Composition:
    """Scores of a run; there are none where no example is complete.

    Args:
        rows: of the run, with id, label, prediction, status, candidates, tag and fits.
        paired: whether their images come in pairs.
        note: see `Composition`.
    """
    tagged: list[tuple[str | None, dict[str, bool], float]] = []
    incomplete = 0
    if paired:
        pairs = pairs_of(rows)
        incomplete = len({row["id"].rpartition("/")[0] for row in rows}) - len(pairs)
        tagged = [(pair[0]["tag"], pair_scores(pair), 0.0) for pair in pairs.values()]
    else:
        done = [row for row in rows if row["status"] == "done"]
        tagged = [(row["tag"], {"accuracy": is_right(row)}, 1 / len(row["candidates"])) for row in done]
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
