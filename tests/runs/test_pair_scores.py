"""Scores of captions against hand-written tables and brute force."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_classifier.metrics import share_interval
from diffusion_classifier.runs.pair_scores import CHANCE, Scores, compose, pair_scores, pairs_of
from diffusion_classifier.runs.row import ResultRow

C = ("a on b", "b on a")
NUMBERS = st.integers(-3, 3).map(float)
TABLES = st.tuples(*[st.tuples(NUMBERS, NUMBERS)] * 2)
"""s[i][c]: how well caption c fits image i; few values, so that ties are common."""


def row(id_, label, fits, captions=C, known=True, tag=None, status="done"):
    best = [c for c, fit in zip(captions, fits, strict=True) if fit == max(fits)]
    return ResultRow(
        id=id_, truth=label, prediction=best[0] if len(best) == 1 else None, candidates=list(captions),
        match_scores=list(fits) if known else None, tag=tag, status=status,
    )  # fmt: skip


def pair(s, example=0, **options):
    return tuple(row(f"{example}/{i}", C[i], s[i], **options) for i in (0, 1))


def brute_force(s):
    """As the definition of Winoground's authors reads."""
    text = s[0][0] > s[0][1] and s[1][1] > s[1][0]
    image = s[0][0] > s[1][0] and s[1][1] > s[0][1]
    return {"text": text, "image": image, "group": text and image}


@pytest.mark.parametrize(
    ("s", "expected"),
    [
        (((2, 1), (1, 2)), (True, True, True)),
        (((1, 2), (2, 1)), (False, False, False)),
        (((9, 8), (1, 2)), (True, False, False)),  # the first image likes everything
        (((2, 9), (1, 10)), (False, True, False)),  # the second caption fits everything
        (((2, 2), (1, 2)), (False, False, False)),  # a tie is no success
        (((2, 1), (2, 3)), (True, False, False)),
    ],
)
def test_of_one_pair(s, expected):
    assert tuple(pair_scores(pair(s)).values()) == expected


@given(TABLES)
def test_against_the_definition(s):
    assert pair_scores(pair(s)) == brute_force(s)
    assert pair_scores(pair(s, known=False)) == {"text": brute_force(s)["text"]}


@given(TABLES)
def test_swapping_both_captions_and_images_changes_nothing(s):
    swapped = ((s[1][1], s[1][0]), (s[0][1], s[0][0]))
    assert pair_scores(pair(swapped)) == pair_scores(pair(s))


@given(TABLES)
def test_the_order_of_an_images_captions_changes_nothing(s):
    turned = row("0/1", C[1], s[1][::-1], captions=C[::-1])
    assert pair_scores((pair(s)[0], turned)) == pair_scores(pair(s))


@given(TABLES, st.tuples(NUMBERS, NUMBERS))
def test_what_an_image_adds_to_all_its_captions_matters_to_the_image_score_alone(s, offsets):
    """Which is why raw errors make none."""
    moved = tuple(tuple(value + offset for value in fits) for fits, offset in zip(s, offsets, strict=True))
    assert pair_scores(pair(moved))["text"] == pair_scores(pair(s))["text"]


def test_chance_is_that_of_all_orders():
    orders = [brute_force((order[:2], order[2:])) for order in permutations(range(4))]
    assert {name: sum(hits[name] for hits in orders) / 24 for name in CHANCE} == pytest.approx(CHANCE)


@given(st.lists(st.tuples(TABLES, st.sampled_from(["object", "both"])), min_size=1, max_size=6), st.randoms())
def test_of_many_pairs(tables, random):
    rows = [one for e, (s, tag) in enumerate(tables) for one in pair(s, e, tag=tag)]
    random.shuffle(rows)  # rows come as they are finished
    found = compose(rows, paired=True, note="why")
    hits = [brute_force(s) for s, _ in tables]
    assert found.overall.num_examples == len(tables)
    for name in CHANCE:
        assert found.overall.shares[name][0] == pytest.approx(sum(h[name] for h in hits) / len(hits))
    assert set(found.by_tag) == {tag for _, tag in tables}
    for tag, scores in found.by_tag.items():
        own = [h for h, (_, other) in zip(hits, tables, strict=True) if other == tag]
        assert scores.num_examples == len(own)
        assert scores.shares["image"][0] == pytest.approx(sum(h["image"] for h in own) / len(own))
    assert (found.num_incomplete, found.note) == (0, "why")


def test_a_pair_counts_only_whole():
    good = ((2.0, 1.0), (1.0, 2.0))
    rows = [*pair(good, 0), *pair(good, 1)[:1], pair(good, 2)[0], replace(pair(good, 2)[1], status="failed")]
    found = compose(rows, paired=True)
    assert (found.overall.num_examples, found.num_incomplete) == (1, 2)
    assert set(pairs_of(rows)) == {"0"}
    none = compose(rows[2:], paired=True)
    assert (none.overall, none.by_tag, none.num_incomplete) == (Scores(0, {}, {}), {}, 2)


def test_where_one_fit_is_not_known_there_is_no_image_score():
    s = ((2.0, 1.0), (1.0, 2.0))
    found = compose([*pair(s, 0), *pair(s, 1, known=False)], paired=True)
    assert set(found.overall.shares) == set(found.overall.chance) == {"text"}


def test_of_images_alone():
    rows = [
        row("0", "x", (3, 1), "xy", tag="swap"), row("1", "x", (1, 3), "xy", tag="add"),
        row("2", "x", (3, 1, 2, 0), "xyzu", tag="swap"), row("3", "x", (3, 3), "xy", tag="swap"),
        row("4", "x", (3, 1), "xy", tag="add", status="failed"),
    ]  # fmt: skip
    found = compose(rows, paired=False)
    assert found.overall.shares == {"accuracy": share_interval(__import__("torch").tensor([True, False, True, False]))}
    assert found.overall.chance["accuracy"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 4 + 1 / 2) / 4)
    assert found.by_tag["swap"].shares["accuracy"][0] == pytest.approx(2 / 3)
    assert found.by_tag["add"].num_examples == 1
