from collections import Counter

import numpy as np
import pytest
from scene_reader import check

from diffusion_classifier.data.scenes import NOUNS, UNSEEN_ATTRIBUTES, UNSEEN_PAIRS, generator, load_photographs, seen
from diffusion_classifier.tasks import scene_tasks as module
from diffusion_classifier.tasks.scene_tasks import (
    open_binding,
    open_counting,
    open_nouns,
    open_pairs,
    open_scene_winoground,
    open_spatial,
)

PHOTOGRAPHS = load_photographs()
MAKERS = ("_objects", "_attributes", "_relations", "_both", "_unseen_attributes")


@pytest.mark.parametrize("maker", MAKERS)
def test_each_caption_is_true_of_its_own_image_alone(maker):
    for i in range(50):
        pair = getattr(module, maker)(generator(7, i), PHOTOGRAPHS)
        for scene in pair:
            check(scene)
        for mine, other in (pair, pair[::-1]):
            with pytest.raises(AssertionError):
                check(type(mine)(mine.things, other.caption))
        words = [Counter(scene.caption.split()) for scene in pair]
        assert words[0] == words[1]
        photographs = [sorted((thing.kind, thing.photograph) for thing in scene.things) for scene in pair]
        assert photographs[0] == photographs[1]
        if maker != "_unseen_attributes":
            assert all(seen(*scene.things) for scene in pair)


def test_unseen_attributes_have_one_that_training_never_showed():
    for i in range(50):
        pair = module._unseen_attributes(generator(7, i), PHOTOGRAPHS)
        attributes = [(a, thing.kind) for scene in pair for thing in scene.things for a in thing.attributes]
        assert sum(a in UNSEEN_ATTRIBUTES for a in attributes) == 1


@pytest.mark.parametrize(
    ("open_", "tags"),
    [
        (open_scene_winoground, {"object": 100, "attribute": 100, "relation": 100, "both": 100}),
        (open_pairs, {"seen": 200, "unseen": 200}),
        (open_binding, {"shade": 100, "size": 100, "turn": 100, "unseen": 100}),
    ],
)
def test_pairs(open_, tags):
    source, again = open_(), open_()
    assert source.paired
    assert Counter(source.tags) == {tag: 2 * count for tag, count in tags.items()}
    assert source.fingerprint() == again.fingerprint()
    assert source.ids[:3] == ("0/0", "0/1", "1/0")
    assert source.read(5).size == (56, 56)
    assert source.read(5).tobytes() == again.read(5).tobytes() != source.read(4).tobytes()
    for i in range(0, len(source), 50):
        if source.tags[i] in ("object", "relation", "both", "seen", "unseen") and open_ is not open_binding:
            # Things of the same size only change places.
            values = [np.sort(np.asarray(source.read(i + k)), axis=None) for k in (0, 1)]
            assert (values[0] == values[1]).all()


def test_seen_and_unseen_pairs():
    kind = {words[0]: i for i, words in enumerate(NOUNS)}
    source = open_pairs()
    for tag, (caption, _) in zip(source.tags, source.captions, strict=True):
        kinds = frozenset(k for noun, k in kind.items() if f"a {noun} " in f"{caption} ")
        assert len(kinds) == 2
        assert (kinds in UNSEEN_PAIRS) == (tag == "unseen")


@pytest.mark.parametrize(
    "open_", [open_nouns, open_scene_winoground, open_pairs, open_binding, open_counting, open_spatial]
)
def test_photographs_of_other_splits(open_, monkeypatch):
    asked = []

    def load(data, split):
        asked.append((data, split))
        return PHOTOGRAPHS

    monkeypatch.setattr(module, "load_photographs", load)
    open_()
    open_("photographs", "validation")
    assert asked == [(None, "test"), ("photographs", "validation")]


@pytest.mark.parametrize("open_", [open_counting, open_spatial])
def test_one_of_four(open_):
    source = open_()
    assert len(source) == 400
    assert {len(set(captions)) for captions in source.captions} == {4}
    assert Counter(source.truth) == dict.fromkeys(range(4), 100)


def test_counting_shows_as_many():
    source = open_counting()
    for i in range(40):
        quarters = np.asarray(source.read(i)).reshape(2, 28, 2, 28).max((1, 3)) > 0
        assert quarters.sum() == source.truth[i] + 1
        number = source.captions[i][source.truth[i]].split()[0]
        assert number in ("a", "an", "two", "three", "four")
        assert source.tags[i] == ("one" if number in ("a", "an") else number)


def test_nouns_are_of_every_photograph():
    source = open_nouns()
    assert len(source) == 1000
    assert source.class_names[source.labels[0]] == NOUNS[PHOTOGRAPHS.labels[0]][0]
    shown = np.asarray(source.read(17))
    assert shown.shape == (56, 56)
    assert shown.sum() == PHOTOGRAPHS.images[17].sum()
