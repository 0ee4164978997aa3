import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_search import search

from diffusion_classifier.errors import InputError
from diffusion_classifier.search.strategies import Fixed, Staged, parse_strategy

PETS = "staged:25,250/5,1"  # the published schedule


def survivors(table, evaluated, kept):
    """Algorithm 2 in plain numpy: classes compared in each stage, as sets."""
    remaining, history = set(range(len(table))), []
    for n, k in zip(evaluated, kept, strict=True):
        history.append(remaining)
        worst_kept = sorted(np.mean(table[c, :n]) for c in remaining)[k - 1]
        remaining = {c for c in remaining if np.mean(table[c, :n]) <= worst_kept}
    return history


@st.composite
def problems(draw):
    """A schedule, and a table of small integers, in which ties are frequent and sums are exact."""
    num_classes = draw(st.integers(2, 7))
    kept = sorted(draw(st.sets(st.integers(2, num_classes - 1), max_size=2)) if num_classes > 2 else [], reverse=True)
    kept = (*kept, 1)
    evaluated = tuple(sorted(draw(st.sets(st.integers(1, 9), min_size=len(kept), max_size=len(kept)))))
    cells = draw(st.lists(st.integers(0, 4), min_size=num_classes * 9, max_size=num_classes * 9))
    return Staged(evaluated, kept), torch.tensor(cells).view(num_classes, 9)[:, : evaluated[-1]].float()


class TestStaged:
    @settings(deadline=None)
    @given(problems())
    def test_equals_algorithm_2_with_ties_kept(self, problem):
        strategy, table = problem
        state, count = search(strategy, table)
        history = survivors(table.numpy(), strategy.evaluated, strategy.kept)
        expected, first = torch.zeros_like(count), 0
        for compared, last in zip(history, strategy.evaluated, strict=True):
            expected[sorted(compared), first:last] = 1
            first = last
        assert torch.equal(count, expected)  # so no pair is evaluated twice
        torch.testing.assert_close(state.errors, table.where(expected == 1, torch.nan), equal_nan=True, rtol=0, atol=0)
        assert state.active.nonzero().squeeze(1).tolist() == sorted(history[-1])

    @settings(deadline=None)
    @given(problems(), st.randoms(use_true_random=False))
    def test_permuting_classes_permutes_everything(self, problem, rng):
        strategy, table = problem
        order = list(range(len(table)))
        rng.shuffle(order)
        state, count = search(strategy, table)
        permuted, permuted_count = search(strategy, table[order])
        torch.testing.assert_close(permuted.errors, state.errors[order], equal_nan=True, rtol=0, atol=0)
        assert torch.equal(permuted.active, state.active[order])
        assert torch.equal(permuted_count, count[order])

    def test_cost_of_the_published_schedule(self):
        table = torch.rand(37, 250, generator=torch.Generator().manual_seed(0))
        _, count = search(parse_strategy(PETS), table)
        assert count.sum() == 37 * 25 + 5 * 225 == 2050

    def test_ties_up_to_float32_survive_the_cut(self):
        """Equal conditions may differ by rounding, since kernels depend on the batch; order must not decide then."""
        table = torch.tensor([[0.1], [0.3], [0.3 * (1 + 2e-7)], [0.3 * (1 + 1e-5)]])
        assert table[1] != table[2]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            state, _ = search(Staged((1, 2), (2, 1)), table[order].expand(-1, 2))
            assert state.active.tolist() == [bool(c < 3) for c in order]

    def test_state_is_not_changed_by_an_update(self):
        strategy = Staged((1, 2), (2, 1))
        state = strategy.init(3)
        strategy.update(state, torch.tensor([[1.0], [2.0], [3.0]]))
        assert state.errors.isnan().all()
        assert state.active.all()
        assert strategy.propose(state).draws == range(1)

    def test_among_few_classes_leaves_out_what_would_prune_nothing(self):
        strategy = parse_strategy("staged:10,20,50,100/20,10,5,1")
        assert strategy.among(21) == strategy
        assert str(strategy.among(20)) == "staged:20,50,100/10,5,1"
        assert str(strategy.among(2)) == str(strategy.among(1)) == "staged:100/1"
        for num_classes in range(1, 22):
            strategy.among(num_classes).init(num_classes)


@pytest.mark.parametrize("n", [1, 4])
def test_staged_without_pruning_equals_fixed(n):
    table = torch.rand(3, n, generator=torch.Generator().manual_seed(0))
    (fixed, count), (staged, staged_count) = search(Fixed(n), table), search(Staged((n,), (1,)), table)
    assert torch.equal(fixed.errors, table)
    assert torch.equal(staged.errors, table)
    assert fixed.active.all()
    assert staged.active.all()
    assert torch.equal(count, torch.ones(3, n, dtype=torch.int64))
    assert torch.equal(staged_count, count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed:0", "at least 1 draw is needed; got 0"),
        ("fixed:-3", "got -3"),
        ("staged:0,25/5,1", "increase from at least 1; got 0,25"),
        ("staged:25,25/5,1", "increase .* got 25,25"),
        ("staged:250,25/5,1", "increase .* got 250,25"),
        ("staged:25,250/5", "2 stages of draws and 1 of classes"),
        ("staged:25,250/5,5", "decrease .* got 5,5"),
        ("staged:25,250/1,5", "decrease .* got 1,5"),
        ("staged:25,250/5,2", "keep 1 class, .* got 5,2"),
        ("staged:25,250/5,0", "keep 1 class, .* got 5,0"),
        ("staged:25,250/-5,1", "decrease .* got -5,1"),
        *((junk, "not known.*fixed:64.*staged:25,250/5,1") for junk in ("", "64", "fixed", "fixed:", "fixed:1.5")),
        *((junk, "not known") for junk in ("staged:25", "staged:/", "staged:25,/5,1", "staged:1/1/1", "greedy:5")),
    ],
)
def test_bad_schedules_are_refused_with_the_values(text, message):
    with pytest.raises(InputError, match=message):
        parse_strategy(text)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_evaluating_no_more_classes_than_are_kept_is_refused(num_classes):
    strategy = parse_strategy(PETS)
    with pytest.raises(InputError, match=rf"staged:25,250/5,1 keeps 5 classes .* only {num_classes}"):
        strategy.init(num_classes)
    strategy.init(6)


@pytest.mark.parametrize("text", ["fixed:64", PETS, "staged:7/1", "staged:20,50,100,500/20,10,5,1"])
def test_parse_reads_back_what_str_wrote(text):
    assert str(parse_strategy(text)) == text
    assert parse_strategy(f" {text} ") == parse_strategy(text)
