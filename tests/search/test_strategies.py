import json
import runpy
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from strategy_search import search

from diffusion_classifier.cli import app
from diffusion_classifier.errors import InputError
from diffusion_classifier.search.strategies import Fixed, Sequential, Staged, is_exhaustive, parse_strategy, registry

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


def halving():
    return runpy.run_path(str(Path(__file__).parents[2] / "examples/own_strategy.py"))["Halving"]


@pytest.mark.parametrize(
    "strategy", [Fixed(9), Staged((2, 9), (2, 1)), Staged((9,), (1,)), Sequential(9, 0.2)], ids=str
)
def test_what_a_strategy_says_of_itself_is_what_it_does(strategy):
    """Of random tables, and of one in which a class is best beyond doubt."""
    tables = [torch.rand(4, 9, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    tables.append(torch.arange(4.0)[:, None] * 10 + tables[0])
    counts = [int(search(strategy, table)[1].sum()) for table in tables]
    least, most = strategy.num_evaluations(4)
    assert all(least <= count <= most for count in counts)
    assert least < most or set(counts) == {most}
    assert not strategy.exhaustive or set(counts) == {4 * strategy.num_draws}
    for table in tables:
        assert search(strategy, table)[0].errors.shape == (4, strategy.num_draws)


class TestRegistry:
    @pytest.fixture
    def plugin(self, monkeypatch):
        """Registers the strategy of the examples as an installed package would."""
        entry = EntryPoint("halving", "my_package:Halving", registry.GROUP)
        monkeypatch.setattr(EntryPoint, "load", lambda _: halving())
        monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == registry.GROUP else [])

    @pytest.mark.usefixtures("plugin")
    def test_a_strategy_of_another_package_is_read_back(self):
        strategy = parse_strategy("halving:3/2")
        assert (strategy.first_draws, strategy.num_rounds) == (3, 2)
        assert str(parse_strategy(str(strategy))) == "halving:3/2"
        assert parse_strategy("fixed:3") == Fixed(3)
        assert not is_exhaustive("halving:3/2")

    @pytest.mark.usefixtures("plugin")
    def test_it_is_listed_with_an_example(self):
        for text in ("greedy:5", "halving", "halving:x/2"):
            with pytest.raises(InputError, match=r"not known: use fixed:.*, or halving:DRAWS/ROUNDS as in halving:2/4"):
                parse_strategy(text)

    @pytest.mark.usefixtures("plugin")
    def test_it_can_be_named_on_the_command_line(self, capsys, tmp_path):
        Image.new("L", (28, 28), 90).save(tmp_path / "x.png")
        command = ["classify", str(tmp_path / "x.png"), "--strategy", "halving:1/2", "--labels", "Bag,Coat,Dress"]
        app([*command, "--batch-size", "8", "--device", "cpu", "--format", "jsonl"], standalone_mode=False)
        row = json.loads(capsys.readouterr().out)
        assert row["num_evaluations"] == 3  # of three classes the better half is one
        assert row["label"] in ("Bag", "Coat", "Dress")

    def test_a_package_that_cannot_be_loaded_is_named(self, monkeypatch):
        entry = EntryPoint("mine", "no_such_package:Mine", registry.GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda **_: [entry])
        with pytest.raises(InputError, match="strategy mine of no_such_package:Mine cannot be loaded: No module"):
            parse_strategy("mine:3")
        assert parse_strategy("fixed:3") == Fixed(3)

    def test_only_strategies_that_are_known_to_be_are_exhaustive(self):
        texts = ("fixed:3", PETS, "sequential:9", "contrastive", "mine:3")
        assert [is_exhaustive(text) for text in texts] == [True, False, False, False, False]
