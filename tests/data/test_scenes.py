import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_reader import check, middle, parse

from diffusion_classifier.data.scenes import (
    ATTRIBUTES,
    CANVAS,
    UNSEEN_ATTRIBUTES,
    UNSEEN_PAIRS,
    Photographs,
    Thing,
    generator,
    load_photographs,
    phrase,
    scene,
    scenes,
    several,
    side_by_side,
)
from diffusion_classifier.errors import InputError

PHOTOGRAPHS = load_photographs()


@pytest.fixture
def photographs():
    return PHOTOGRAPHS


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 10**6))
def test_captions_hold_of_what_is_shown(seed, index):
    made = scene(PHOTOGRAPHS, seed, index)
    check(made)
    for i, thing in enumerate(made.things):
        x, y = thing.corner
        assert min(x, y) >= 0
        assert max(x, y) + thing.edge <= CANVAS
        for other in made.things[:i]:
            apart = [
                abs(a - b) >= (thing.edge + other.edge) / 2 for a, b in zip(middle(thing), middle(other), strict=True)
            ]
            assert any(apart)


def test_what_training_never_shows(photographs):
    pairs, attributes = Counter(), Counter()
    for made in scenes(photographs, 3000):
        pairs[frozenset(thing.kind for thing in made.things)] += 1
        attributes.update((a, thing.kind) for thing in made.things for a in thing.attributes)
    assert not pairs.keys() & UNSEEN_PAIRS
    assert not attributes.keys() & UNSEEN_ATTRIBUTES
    assert len(pairs) == 10 + 45 - len(UNSEEN_PAIRS)  # every other pair, and every kind by itself, is shown
    assert len(attributes) == 10 * len(ATTRIBUTES) - len(UNSEEN_ATTRIBUTES)
    assert {kind for pair in UNSEEN_PAIRS for kind in pair} == set(range(10))


def test_a_scene_depends_on_seed_and_index_alone(photographs):
    first = [scene(photographs, 3, i) for i in (5, 6, 5)]
    assert first[0] == first[2] != first[1]
    assert scene(photographs, 4, 5) != first[0]
    assert list(scenes(photographs, 7, 3))[5] == first[0]


class TestPixels:
    def test_a_plain_photograph_is_shown_as_it_is(self, photographs):
        shown = np.asarray(photographs.render([Thing(0, 7, corner=(3, 20))]))
        assert (shown[20:48, 3:31] == photographs.images[7]).all()
        assert shown.sum() == photographs.images[7].sum()

    def test_attributes(self, photographs):
        plain = photographs.images[7].astype(float)

        def shown(*attributes):
            thing = Thing(0, 7).with_attributes(*attributes)
            assert set(thing.attributes) == set(attributes)
            return np.asarray(photographs.render([thing])).astype(float)[: thing.edge, : thing.edge]

        assert (shown("upside-down") == plain[::-1, ::-1]).all()
        assert shown("small").shape == (16, 16)
        assert shown("large").shape == (40, 40)
        visible = plain > 0
        assert shown("dark")[visible].mean() == pytest.approx(0.2 * 255, rel=0.02)
        assert shown("bright")[visible].mean() > 2 * shown("dark")[visible].mean()

    def test_things_in_quarters(self, photographs):
        rng = generator(0)
        things = several(rng, photographs.pick(rng, 3, 4))
        assert sorted(thing.corner for thing in things) == [(0, 0), (0, 28), (28, 0), (28, 28)]
        assert len({thing.photograph for thing in things}) == 4

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32), st.booleans(), st.sampled_from([("small", "large"), ("", ""), ("large", "small")]))
    def test_side_by_side(self, seed, vertical, sizes):
        a, b = side_by_side(generator(seed), *(Thing(0, 0, size=size) for size in sizes), vertical)
        along, across = (1, 0) if vertical else (0, 1)
        assert a.corner[along] + a.edge <= b.corner[along] <= CANVAS - b.edge
        assert abs(middle(a)[across] - middle(b)[across]) <= 24  # 10, more only where an edge is in the way
        assert min(*a.corner, *b.corner) >= 0


@pytest.mark.parametrize(
    ("thing", "count", "words"),
    [
        (Thing(1, 0), 1, "a pair of trousers"),
        (Thing(1, 0, shade="dark"), 3, "three dark pairs of trousers"),
        (Thing(3, 0), 2, "two dresses"),
        (Thing(9, 0, size="small", upside_down=True), 1, "an upside-down small boot"),
    ],
)
def test_phrases(thing, count, words):
    assert phrase(thing, count=count) == words
    assert parse(words) == (count, set(thing.attributes), thing.kind)


class TestPhotographs:
    def test_splits_are_disjoint(self, tmp_path, monkeypatch):
        monkeypatch.setattr("diffusion_classifier.data.scenes.HELD_OUT", 200)
        images = np.zeros((600, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(600), 256)
        labels = (np.arange(600) % 10).astype(np.uint8)
        for part, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (tmp_path / f"train-{part}-ubyte").write_bytes(header + values.tobytes())
        found = {}
        for split in ("train", "validation"):
            photographs = load_photographs(str(tmp_path), split)
            numbers = photographs.images[:, 0, :2].astype(int) @ [256, 1]
            assert (photographs.labels == numbers % 10).all()
            found[split] = set(numbers.tolist())
        assert (len(found["train"]), len(found["validation"])) == (400, 200)
        assert not found["train"] & found["validation"]

    def test_refusals(self):
        with pytest.raises(InputError, match="only test photographs are bundled"):
            load_photographs(split="train")
        with pytest.raises(InputError, match="'all' is not one of train, validation, test"):
            load_photographs(split="all")
        with pytest.raises(InputError, match="28×28"):
            Photographs(np.zeros((40, 8, 8), np.uint8), np.arange(40) % 10)
        with pytest.raises(InputError, match="4 photographs of each of ten kinds"):
            Photographs(np.zeros((30, 28, 28), np.uint8), np.arange(30) % 10)
