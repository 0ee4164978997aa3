"""Parser of scene captions that is independent of the code that generates them."""

import re

from diffusion_classifier.data.scenes import ATTRIBUTES, NOUNS, NUMBERS

WORD = {word: kind for kind, words in enumerate(NOUNS) for word in words}


def plural(word):
    if word.startswith("pair "):
        return "pairs" + word[4:]
    return word + ("es" if word.endswith("s") else "s")


def kind_named(words):
    """Return the kind of object that these words name, in the singular or the plural."""
    return {**WORD, **{plural(word): kind for word, kind in WORD.items()}}[" ".join(words)]


def parse(said):
    """Return count, attributes and kind of a noun phrase."""
    first, *rest = said.split()
    count = 1 if first in ("a", "an") else NUMBERS.index(first) + 1
    attributes = []
    while rest[0] in ATTRIBUTES:
        attributes.append(rest.pop(0))
    return count, set(attributes), kind_named(rest)


def middle(thing):
    return tuple(at + thing.edge / 2 for at in thing.corner)


RELATIONS = {  # position of the first object relative to the second: axis (0 is x, 1 is y), and sign of the difference
    "left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1),
}  # fmt: skip


def check(made):
    """Assert that the caption of a scene is true."""
    caption, things = made.caption, made.things
    if found := re.fullmatch(r"(.+) (left of|right of|above|below) (.+)", caption):
        first, relation, second = found.groups()
        said = [parse(first), parse(second)]
        axis, sign = RELATIONS[relation]
    elif found := re.fullmatch(r"(.+) (?:on the|at the) (left|right|top|bottom) and (.+) (?:on|at) the (\w+)", caption):
        first, place, second, other = found.groups()
        said = [parse(first), parse(second)]
        axis, sign = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}[place]
        assert {place, other} in ({"left", "right"}, {"top", "bottom"})
    elif found := re.fullmatch(r"(.+) (?:and|beside) (.+)", caption):
        said = [parse(part) for part in found.groups()]
        axis = sign = None
        if "beside" in caption:
            a, b = things
            assert a.corner[0] + a.edge <= b.corner[0] or b.corner[0] + b.edge <= a.corner[0]
    else:
        said = [parse(caption)]
        axis = sign = None
    if len(said) == 1:
        ((count, attributes, kind),) = said
        assert len(things) == count
        assert {thing.kind for thing in things} == {kind}
        assert all(attributes <= set(thing.attributes) for thing in things)
        return
    by_kind = {thing.kind: thing for thing in things}
    named = [by_kind[kind] for _, _, kind in said]
    assert len(things) == 2
    for thing, (count, attributes, _) in zip(named, said, strict=True):
        assert count == 1
        assert attributes <= set(thing.attributes)
    if axis is not None:
        gap = middle(named[0])[axis] - middle(named[1])[axis]
        assert sign * gap >= (named[0].edge + named[1].edge) / 2  # the objects do not overlap along this axis
