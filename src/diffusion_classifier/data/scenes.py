"""Scenes: photographs of Fashion-MNIST on a canvas, with captions that say what is where.

A scene has one thing, two things in a spatial relation, or several things of one kind. A thing may be dark or bright,
small or large, and upside-down. A scene depends on (seed, index) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from .fashion import FASHION, load_sample
from .held_out import held_out_rows
from .idx import read_idx_folder

CANVAS = 56
"""Height and width of a scene in pixels."""

NOUNS = (
    ("t-shirt", "tee"), ("pair of trousers", "pair of pants"), ("pullover", "sweater"), ("dress", "gown"),
    ("coat", "jacket"), ("sandal", "slipper"), ("shirt", "blouse"), ("sneaker", "trainer"), ("bag", "handbag"),
    ("boot", "ankle boot"),
)  # fmt: skip
"""Words for each kind of thing, in the order of Fashion-MNIST's labels."""

EDGES = {"small": 16, "": 28, "large": 40}
"""Size → height and width of a photograph in pixels."""
SHADES = {"dark": 0.2, "": None, "bright": 0.75}
"""Shade → mean brightness of the foreground; None keeps the photograph's own."""
UPSIDE_DOWN = "upside-down"
ATTRIBUTES = ("dark", "bright", "small", "large", UPSIDE_DOWN)
NUMBERS = ("one", "two", "three", "four")

UNSEEN_PAIRS = frozenset(map(frozenset, ((0, 7), (1, 8), (2, 5), (3, 9), (4, 6))))
"""Pairs of kinds that training scenes never show together. Each kind is in one pair."""
UNSEEN_ATTRIBUTES = frozenset((("dark", 8), ("bright", 2), ("small", 7), ("large", 3), (UPSIDE_DOWN, 9)))
"""Attributes that these kinds never have in training scenes."""

_HORIZONTAL = ("{a} left of {b}", "{b} right of {a}", "{a} on the left and {b} on the right",
               "{b} on the right and {a} on the left", "{a} beside {b}", "{b} beside {a}")  # fmt: skip
_VERTICAL = ("{a} above {b}", "{b} below {a}", "{a} at the top and {b} at the bottom",
             "{b} at the bottom and {a} at the top")  # fmt: skip
HELD_OUT = 5000
"""Number of training images of Fashion-MNIST that no bundled model was trained on; see `load_photographs`."""
SPLITS = ("train", "validation", "test")
_SHIFT = 10
"""Maximum offset in pixels between the centres of two things, across the direction of their relation."""
_UNSAID = 0.2
"""Probability that a caption does not mention an attribute."""


@dataclass(frozen=True)
class Thing:
    """A photograph with its attributes and its position.

    Args:
        kind: Index into NOUNS.
        photograph: Index into the photographs.
        size: Key of EDGES.
        shade: Key of SHADES.
        upside_down: Whether it is rotated by 180°.
        corner: Left and top position on the canvas, in pixels.
    """

    kind: int
    photograph: int
    size: str = ""
    shade: str = ""
    upside_down: bool = False
    corner: tuple[int, int] = (0, 0)

    @property
    def edge(self) -> int:
        """Height and width in pixels."""
        return EDGES[self.size]

    @property
    def attributes(self) -> tuple[str, ...]:
        """Its attributes, in the order in which a caption states them."""
        return tuple(a for a in (UPSIDE_DOWN if self.upside_down else "", self.size, self.shade) if a)

    def with_attributes(self, *attributes: str) -> Thing:
        """Return the same photograph with these attributes only."""
        size, shade = (next((a for a in attributes if a in known), "") for known in (EDGES, SHADES))
        return replace(self, size=size, shade=shade, upside_down=UPSIDE_DOWN in attributes)

    def at(self, x: int, y: int) -> Thing:
        """Return the same thing at another position."""
        return replace(self, corner=(x, y))


@dataclass(frozen=True)
class Scene:
    """Things, and a true caption of them."""

    things: tuple[Thing, ...]
    caption: str


@dataclass(frozen=True)
class Photographs:
    """The photographs of which scenes are made.

    Args:
        images: (M, 28, 28), uint8, bright things on black.
        labels: (M,) labels of Fashion-MNIST.

    Raises:
        InputError: The images have another size, or a kind has fewer than four.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.shape[1:] != (28, 28) or len(self.images) != len(self.labels):
            raise InputError(f"scenes are made of 28×28 photographs of ten kinds; got images of {self.images.shape}")
        counts = np.bincount(self.labels, minlength=len(NOUNS))
        if len(counts) != len(NOUNS) or counts.min() < len(NUMBERS):
            raise InputError(
                f"scenes need at least {len(NUMBERS)} photographs of each of ten kinds; there are {counts}"
            )

    @cached_property
    def _of_kind(self) -> list[NDArray[np.int64]]:
        return [np.flatnonzero(self.labels == kind) for kind in range(len(NOUNS))]

    def pick(self, rng: np.random.Generator, kind: int, count: int = 1) -> tuple[Thing, ...]:
        """Return `count` different photographs of a kind, without attributes."""
        return tuple(Thing(kind, int(i)) for i in rng.choice(self._of_kind[kind], count, replace=False))

    def render(self, things: Sequence[Thing]) -> Image.Image:
        """Return the canvas with the things, in mode L."""
        canvas = np.zeros((CANVAS, CANVAS), np.uint8)
        for thing in things:
            x, y = thing.corner
            canvas[y : y + thing.edge, x : x + thing.edge] = self._shown(thing)
        return Image.fromarray(canvas)

    def _shown(self, thing: Thing) -> NDArray[np.uint8]:
        pixels = self.images[thing.photograph].astype(np.float32)
        mean = SHADES[thing.shade]
        if mean is not None:
            visible = pixels[pixels > 0]
            pixels = pixels * (255 * mean / visible.mean()) if len(visible) else pixels
        shown = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
        shown = shown.resize((thing.edge, thing.edge), Image.Resampling.BICUBIC)
        return np.asarray(shown.rotate(180) if thing.upside_down else shown)


def load_photographs(folder: str | None = None, split: str = "test") -> Photographs:
    """Load the photographs of one split. Splits are disjoint.

    Args:
        folder: Folder with the IDX files of Fashion-MNIST. Default: the 1,000 bundled test images.
        split: "test"; "validation", the training images that the bundled models were not trained on; or "train", the
            other training images.

    Raises:
        InputError: There is no such split, or the files cannot be read.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if folder is None:
        if split != "test":
            raise InputError(f"only test photographs are bundled: for {split} give the folder of Fashion-MNIST, --data")
        samples = load_sample()
        labels = np.array([FASHION.index(sample.label) for sample in samples])
        return Photographs(np.stack([np.asarray(sample.image) for sample in samples]), labels)
    images, labels, *_ = read_idx_folder(Path(folder), "test" if split == "test" else "train")
    if split != "test":
        held_out = held_out_rows(len(labels), HELD_OUT, seed=0).numpy()
        rows = held_out if split == "validation" else np.setdiff1d(np.arange(len(labels)), held_out)
        images, labels = images[rows], labels[rows]
    return Photographs(images, labels)


def phrase(thing: Thing, attributes: Sequence[str] | None = None, word: str | None = None, count: int = 1) -> str:
    """Return the words for a thing, or for several of its kind.

    Args:
        thing: The thing.
        attributes: Attributes to mention. Default: all of them.
        word: Word for the kind. Default: the first one.
        count: Number of things.
    """
    said = [*(thing.attributes if attributes is None else attributes), word or NOUNS[thing.kind][0]]
    if count > 1:
        return " ".join([NUMBERS[count - 1], *said[:-1], _plural(said[-1])])
    return " ".join(["an" if said[0][0] in "aeiou" else "a", *said])


def _plural(noun: str) -> str:
    if noun.startswith("pair "):
        return noun.replace("pair", "pairs", 1)
    return noun + ("es" if noun.endswith("s") else "s")


def side_by_side(rng: np.random.Generator, first: Thing, second: Thing, vertical: bool = False) -> tuple[Thing, Thing]:
    """Place the first thing left of the second, or above it if `vertical`."""
    room = CANVAS - first.edge - second.edge
    before, between = sorted(int(i) for i in rng.integers(0, room + 1, 2))
    across = int(rng.integers(0, CANVAS - first.edge + 1))
    middle = across + (first.edge - second.edge) / 2 + rng.integers(-_SHIFT, _SHIFT + 1)
    other = int(np.clip(middle, 0, CANVAS - second.edge))
    along = (before, first.edge + between)
    if vertical:
        return first.at(across, along[0]), second.at(other, along[1])
    return first.at(along[0], across), second.at(along[1], other)


def anywhere(rng: np.random.Generator, thing: Thing) -> Thing:
    """Place a thing at random."""
    x, y = rng.integers(0, CANVAS - thing.edge + 1, 2)
    return thing.at(int(x), int(y))


def several(rng: np.random.Generator, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Place up to four things, none of them large, each in a different quarter of the canvas."""
    half = CANVAS // 2
    places = rng.permutation(4)[: len(things)]
    placed = []
    for thing, place in zip(things, places, strict=True):
        dx, dy = rng.integers(0, half - thing.edge + 1, 2)
        placed.append(thing.at(int(place % 2) * half + int(dx), int(place // 2) * half + int(dy)))
    return tuple(placed)


def seen(*things: Thing) -> bool:
    """Return whether training may show these things together."""
    known = all((a, thing.kind) not in UNSEEN_ATTRIBUTES for thing in things for a in thing.attributes)
    return known and frozenset(thing.kind for thing in things) not in UNSEEN_PAIRS


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the random generator of a scene."""
    return np.random.default_rng((seed, *key))


def scene(photographs: Photographs, seed: int, index: int) -> Scene:
    """Return a scene that training may show; see `seen`."""
    rng = generator(seed, index)
    kind = rng.choice(("one", "two", "several"), p=(0.3, 0.55, 0.15))
    while True:
        made = {"one": _one, "two": _two, "several": _several}[kind](rng, photographs)
        if seen(*made.things):
            return made


def scenes(photographs: Photographs, number: int, seed: int = 0) -> Iterator[Scene]:
    """Return the first `number` scenes of a seed."""
    return (scene(photographs, seed, i) for i in range(number))


def _attributed(rng: np.random.Generator, thing: Thing) -> Thing:
    """Give a thing zero, one or two attributes of different sorts."""
    sorts = (("small", "large"), ("dark", "bright"), (UPSIDE_DOWN,))
    count = int(rng.choice(3, p=(0.4, 0.45, 0.15)))
    chosen = rng.choice(len(sorts), count, replace=False, p=(0.4, 0.4, 0.2))
    return thing.with_attributes(*(str(rng.choice(sorts[i])) for i in chosen))


def _said(rng: np.random.Generator, thing: Thing, count: int = 1) -> str:
    attributes = [a for a in thing.attributes if rng.random() >= _UNSAID]
    return phrase(thing, attributes, str(rng.choice(NOUNS[thing.kind])), count)


def _one(rng: np.random.Generator, photographs: Photographs) -> Scene:
    (thing,) = photographs.pick(rng, int(rng.integers(len(NOUNS))))
    thing = anywhere(rng, _attributed(rng, thing))
    return Scene((thing,), _said(rng, thing))


def _two(rng: np.random.Generator, photographs: Photographs) -> Scene:
    while True:
        kinds = rng.choice(len(NOUNS), 2, replace=False)
        a, b = (_attributed(rng, photographs.pick(rng, int(kind))[0]) for kind in kinds)
        if a.edge + b.edge <= CANVAS:
            break
    vertical = bool(rng.integers(2))
    things = side_by_side(rng, a, b, vertical)
    said = [_said(rng, thing) for thing in things]
    if rng.random() < 0.2:
        return Scene(things, " and ".join(said if rng.integers(2) else said[::-1]))
    return Scene(things, str(rng.choice(_VERTICAL if vertical else _HORIZONTAL)).format(a=said[0], b=said[1]))


def _several(rng: np.random.Generator, photographs: Photographs) -> Scene:
    count = int(rng.integers(2, len(NUMBERS) + 1))
    things = photographs.pick(rng, int(rng.integers(len(NOUNS))), count)
    attributes = [a for a in _attributed(rng, things[0]).attributes if a != "large"]
    things = several(rng, [thing.with_attributes(*attributes) for thing in things])
    return Scene(things, _said(rng, things[0], count))
