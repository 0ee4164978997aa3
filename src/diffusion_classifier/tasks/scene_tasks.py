"""Caption tasks on scenes: which of several similar captions is true?

The two images of a pair show the same photographs, and their captions consist of the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from ..data.captioned import CaptionedSource
from ..data.labelled import LabelledSource
from ..data.scenes import (
    NOUNS,
    NUMBERS,
    UNSEEN_ATTRIBUTES,
    UNSEEN_PAIRS,
    UPSIDE_DOWN,
    Photographs,
    Scene,
    Thing,
    anywhere,
    generator,
    load_photographs,
    phrase,
    seen,
    several,
    side_by_side,
)

_SEED = 2303
"""Seed of all tasks; training uses others."""
_RELATIONS = (("left of", False, False), ("right of", False, True), ("above", True, False), ("below", True, True))
"""Words, whether the relation is vertical, and whether the second thing is named first."""
_SORTS = {"shade": ("dark", "bright"), "size": ("small", "large"), "turn": (UPSIDE_DOWN, "")}

_Pair = tuple[Scene, Scene]
_Make = Callable[[np.random.Generator, Photographs], _Pair]


def open_scene_winoground(data: str | None = None, split: str | None = None) -> CaptionedSource:
    """Open 100 pairs each of swapped objects, attributes, relations, and objects with their attributes."""
    makers: dict[str, _Make] = {
        "object": _objects, "attribute": _attributes, "relation": _relations, "both": _both,
    }  # fmt: skip
    return _paired("scenes-winoground", data, split, [(tag, make) for tag, make in makers.items() for _ in range(100)])


def open_pairs(data: str | None = None, split: str | None = None) -> CaptionedSource:
    """Open 200 pairs of swapped objects that training showed together, and 200 pairs that it never did."""
    unseen = sorted(map(sorted, UNSEEN_PAIRS))

    def of(kinds: Sequence[int]) -> _Make:
        return lambda rng, photographs: _objects(rng, photographs, rng.permutation(kinds).tolist())

    shown: list[tuple[str, _Make]] = [("seen", _objects)] * 200
    return _paired(
        "scenes-pairs", data, split, [*shown, *(("unseen", of(unseen[i % len(unseen)])) for i in range(200))]
    )


def open_binding(data: str | None = None, split: str | None = None) -> CaptionedSource:
    """Open pairs of swapped attributes: 100 of each sort, and 100 with an attribute unseen in training."""

    def of(sort: str) -> _Make:
        return lambda rng, photographs: _attributes(rng, photographs, sort)

    makers: list[tuple[str, _Make]] = [(sort, of(sort)) for sort in _SORTS for _ in range(100)]
    return _paired("scenes-binding", data, split, makers + [("unseen", _unseen_attributes)] * 100)


def open_counting(data: str | None = None, split: str | None = None) -> CaptionedSource:
    """Open 400 images of one to four things of a kind, with captions that differ in the number."""

    def make(rng: np.random.Generator, photographs: Photographs, i: int) -> tuple[str, Sequence[Thing], list[str]]:
        count, kind = i % len(NUMBERS) + 1, i // len(NUMBERS) % len(NOUNS)
        things = several(rng, photographs.pick(rng, kind, count))
        return NUMBERS[count - 1], things, [phrase(things[0], count=n) for n in range(1, len(NUMBERS) + 1)]

    return _alone("scenes-counting", data, split, 400, make)


def open_spatial(data: str | None = None, split: str | None = None) -> CaptionedSource:
    """Open 400 images of two things, with captions that differ in the spatial relation."""

    def make(rng: np.random.Generator, photographs: Photographs, i: int) -> tuple[str, Sequence[Thing], list[str]]:
        words, vertical, reverse = _RELATIONS[i % len(_RELATIONS)]
        a, b = _two(rng, photographs)
        things = side_by_side(rng, *((b, a) if reverse else (a, b)), vertical)
        return words, things, [f"{phrase(a)} {relation} {phrase(b)}" for relation, *_ in _RELATIONS]

    return _alone("scenes-spatial", data, split, 400, make)


def noun_names() -> tuple[str, ...]:
    """Return the first word for each kind."""
    return tuple(words[0] for words in NOUNS)


def open_nouns(data: str | None = None, split: str | None = None) -> LabelledSource:
    """Open every photograph as a scene of one thing without attributes; the classes are the ten nouns."""
    photographs = load_photographs(data, split or "test")

    def read(i: int) -> Image.Image:
        rng = generator(_SEED, i)
        return photographs.render([anywhere(rng, Thing(int(photographs.labels[i]), i))])

    ids = tuple(map(str, range(len(photographs.labels))))
    return LabelledSource("scenes-nouns", noun_names(), tuple(photographs.labels.tolist()), ids, read)


def _paired(name: str, data: str | None, split: str | None, makers: Sequence[tuple[str, _Make]]) -> CaptionedSource:
    photographs = load_photographs(data, split or "test")
    pairs = [make(generator(_SEED, 1, i), photographs) for i, (_, make) in enumerate(makers)]
    scenes = [scene for pair in pairs for scene in pair]
    captions = [(first.caption, second.caption) for first, second in pairs for _ in (0, 1)]
    return CaptionedSource(
        name,
        tuple(f"{i // 2}/{i % 2}" for i in range(len(scenes))),
        tuple(captions),
        tuple(i % 2 for i in range(len(scenes))),
        lambda i: photographs.render(scenes[i].things),
        tags=tuple(tag for tag, _ in makers for _ in (0, 1)),
        paired=True,
    )


def _alone(
    name: str,
    data: str | None,
    split: str | None,
    number: int,
    make: Callable[[np.random.Generator, Photographs, int], tuple[str, Sequence[Thing], list[str]]],
) -> CaptionedSource:
    """Make images whose true caption is the first, the second, and so on in turn."""
    photographs = load_photographs(data, split or "test")
    made = [make(generator(_SEED, 2, i), photographs, i) for i in range(number)]
    return CaptionedSource(
        name,
        tuple(map(str, range(number))),
        tuple(tuple(captions) for _, _, captions in made),
        tuple(i % len(captions) for i, (_, _, captions) in enumerate(made)),
        lambda i: photographs.render(made[i][1]),
        tags=tuple(tag for tag, _, _ in made),
    )


def _two(rng: np.random.Generator, photographs: Photographs, kinds: Sequence[int] | None = None) -> tuple[Thing, Thing]:
    """Pick two things without attributes; of two kinds that training shows together if `kinds` is None."""
    while True:
        chosen = rng.choice(len(NOUNS), 2, replace=False) if kinds is None else kinds
        a, b = (photographs.pick(rng, int(kind))[0] for kind in chosen)
        if kinds is not None or seen(a, b):
            return a, b


def _exchanged(a: Thing, b: Thing) -> tuple[Thing, Thing]:
    """Exchange the positions of two things, which have the same size."""
    return a.at(*b.corner), b.at(*a.corner)


def _placed(
    rng: np.random.Generator, photographs: Photographs, kinds: Sequence[int] | None = None
) -> tuple[tuple[Thing, Thing], tuple[str, bool, bool]]:
    relation = _RELATIONS[rng.integers(len(_RELATIONS))]
    return side_by_side(rng, *_two(rng, photographs, kinds), relation[1]), relation


def _objects(
    rng: np.random.Generator,
    photographs: Photographs,
    kinds: Sequence[int] | None = None,
    attributes: tuple[str, str] = ("", ""),
) -> _Pair:
    """Make "A left of B" and "B left of A", with one attribute each if there are some."""
    while True:
        (a, b), (words, _, reverse) = _placed(rng, photographs, kinds)
        said = rng.permutation(attributes)
        a, b = a.with_attributes(str(said[0])), b.with_attributes(str(said[1]))
        if kinds is not None or seen(a, b):
            break
    first, second = (phrase(b), phrase(a)) if reverse else (phrase(a), phrase(b))
    return (
        Scene((a, b), f"{first} {words} {second}"),
        Scene(_exchanged(a, b), f"{second} {words} {first}"),
    )


def _both(rng: np.random.Generator, photographs: Photographs) -> _Pair:
    """Make "a dark A left of a bright B" and "a bright B left of a dark A"."""
    return _objects(rng, photographs, attributes=_SORTS["shade"])


def _relations(rng: np.random.Generator, photographs: Photographs) -> _Pair:
    """Make "A on the left and B on the right" and "A on the right and B on the left"."""
    (a, b), (_, vertical, _) = _placed(rng, photographs)
    here, there = ("at the top", "at the bottom") if vertical else ("on the left", "on the right")
    return (
        Scene((a, b), f"{phrase(a)} {here} and {phrase(b)} {there}"),
        Scene(_exchanged(a, b), f"{phrase(a)} {there} and {phrase(b)} {here}"),
    )


def _attributes(rng: np.random.Generator, photographs: Photographs, sort: str | None = None) -> _Pair:
    """Make "a dark A and a bright B" and "a bright A and a dark B"."""
    attributes = _SORTS[sort or str(rng.choice(list(_SORTS)))]
    while True:
        a, b = _two(rng, photographs)
        pair = _swapped(rng, a, b, attributes)
        if all(seen(*scene.things) for scene in pair):
            return pair


def _unseen_attributes(rng: np.random.Generator, photographs: Photographs) -> _Pair:
    """Make such a pair in which exactly one of the four attributes is unseen for its kind in training."""
    attribute, kind = sorted(UNSEEN_ATTRIBUTES)[rng.integers(len(UNSEEN_ATTRIBUTES))]
    (attributes,) = (pair for pair in _SORTS.values() if attribute in pair)
    while True:
        a, b = _two(rng, photographs, (kind, int(rng.integers(len(NOUNS)))))
        if a.kind == b.kind or not seen(a, b):
            continue
        pair = _swapped(rng, a, b, attributes)
        things = [thing for scene in pair for thing in scene.things]
        if sum((said, thing.kind) in UNSEEN_ATTRIBUTES for thing in things for said in thing.attributes) == 1:
            return pair


def _swapped(rng: np.random.Generator, a: Thing, b: Thing, attributes: tuple[str, str]) -> _Pair:
    vertical = bool(rng.integers(2))
    place = int(rng.integers(2**32))  # both scenes use the same random places, even if sizes differ
    scenes = []
    for first, second in (attributes, attributes[::-1]):
        things = side_by_side(generator(place), a.with_attributes(first), b.with_attributes(second), vertical)
        scenes.append(Scene(things, " and ".join(map(phrase, things))))
    return scenes[0], scenes[1]
