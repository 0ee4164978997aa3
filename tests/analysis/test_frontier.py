from dataclasses import replace
from functools import cache
from itertools import islice, takewhile

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import norm

from diffusion_classifier.analysis.calibration import calibrate
from diffusion_classifier.analysis.frontier import draw_frontier, measure_frontier, scaling
from diffusion_classifier.cli.summaries import print_frontier
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.error_tables import ErrorTables
from diffusion_classifier.search.strategies import parse_strategy, replay

M, K, N = 120, 6, 8
NAMES = tuple("abcdef")
T = (np.arange(1, N + 1) * 5 % 9) * 100.0  # each of 100, 200 … 800 once


def made(informative=lambda t: np.ones_like(t), truths=True):
    """Class 0, 1 … is the right one of image 0, 1 …, and tells itself apart where the times are informative."""
    rng = np.random.default_rng(0)
    errors = 1 + rng.standard_normal((M, K, N))
    truth = np.arange(M) % K
    errors[np.arange(M), truth] -= informative(T)
    return ErrorTables(
        NAMES,
        {"strategy": f"fixed:{N}", "loss": "l2", "timesteps": "even", "num_dimensions": 9, "num_timesteps": 1000},
        tuple(map(str, range(M))),
        tuple(NAMES[i] if truths else None for i in truth),
        tuple(torch.from_numpy(errors).float()),
        (torch.from_numpy(T),) * M,
    )


@cache
def plain_points():
    return tuple(measure_frontier(made()))


def test_points_are_those_of_a_plain_replay():
    tables = made()
    points = {(p.family, p.strategy): p for p in plain_points()}
    for family, strategy in (
        ("every class, all times", "fixed:4"),
        ("staged, a 4th of the draws first", "staged:2,8/3,1"),
        ("sequential, not calibrated", "sequential:8/0.1"),
    ):
        point = points[family, strategy]
        spent, right = 0, 0
        for table, truth in zip(tables.errors, tables.truth, strict=True):
            state = replay(parse_strategy(strategy), table)
            known = ~state.errors.isnan()
            spent += int(known.sum())
            means = (state.errors.nan_to_num().sum(1) / known.sum(1)).where(state.active, torch.inf)
            right += NAMES[int(means.argmin())] == truth
        assert point.num_evaluations == pytest.approx(spent / M)
        assert point.accuracy[0] == pytest.approx(right / M)


def test_weights_are_those_that_the_tables_were_read_with(tmp_path):
    weights = [2.0, 1.0, 0.0]
    (tmp_path / "w.json").write_text("[2, 1, 0]")
    tables = made(lambda t: 2.0 * (t < 450))
    read = replace(tables, settings=tables.settings | {"weights": weights})
    found = list(measure_frontier(read))

    def first(*given):  # the weights of all points are read at once
        return list(islice(measure_frontier(*given), 12))

    assert found[:12] == first(tables, weights) == first(tables, tmp_path / "w.json")
    assert found[:12] != first(tables) == first(read, "uniform")
    points = {(p.family, p.strategy): p for p in found}
    w = np.interp(T / 1000, [0, 0.5, 1], weights)
    for family, strategy, part in (
        ("every class, all times", "fixed:4", slice(None)),
        ("staged, a 4th of the draws first", "staged:2,8/3,1", slice(None)),
        ("every class, first half", "fixed:2", T < 451),
    ):
        right = 0
        for table, truth in zip(tables.errors, tables.truth, strict=True):
            errors = torch.from_numpy(table.numpy()[:, part] * w[part]).float()
            state = replay(parse_strategy(strategy), errors)
            means = state.errors.nan_to_num().sum(1).where(state.active, torch.inf)
            right += NAMES[int(means.argmin())] == truth
        assert points[family, strategy].accuracy[0] == pytest.approx(right / M)
    (calibrated,) = [p for p in found if p.family.endswith("at most 8 draws") and p.strategy == "sequential:8/0.05"]
    plain = next(
        p
        for p in measure_frontier(tables, "uniform")
        if (p.family, p.strategy) == (calibrated.family, calibrated.strategy)
    )
    assert calibrated.accuracy[0] > plain.accuracy[0]


def test_accuracy_of_one_draw_is_the_chance_that_the_right_class_is_least():
    """Six normal variables, of which one is shifted by its deviation."""
    x = np.linspace(-8, 8, 4001)
    expected = np.trapezoid(norm.pdf(x + 1) * norm.sf(x) ** (K - 1), x)
    (point,) = [p for p in plain_points() if (p.family, p.strategy) == ("every class, all times", "fixed:1")]
    assert point.accuracy[1] < expected < point.accuracy[2]


def test_a_window_holds_the_times_that_it_names():
    tables = made(lambda t: 20.0 * (t > 450))
    fixed = takewhile(lambda p: p.strategy.startswith("fixed"), measure_frontier(tables))
    best = {p.family: p.accuracy[0] for p in fixed}
    assert best["every class, last half"] == 1
    assert best["every class, first half"] < 0.4


def test_calibrated_points_spend_less_for_the_same_accuracy():
    points = list(measure_frontier(made(lambda t: np.full_like(t, 1.5))))
    (full,) = [p for p in points if (p.family, p.strategy) == ("every class, all times", "fixed:8")]
    calibrated = [p for p in points if p.family == "sequential, calibrated, at most 8 draws"]
    assert {p.strategy for p in calibrated} >= {"sequential:8/0.05", "sequential:8/0.1"}
    (point,) = [p for p in calibrated if p.strategy == "sequential:8/0.05"]
    assert point.num_evaluations < 0.8 * full.num_evaluations
    assert point.accuracy[2] + 0.05 >= full.accuracy[0]


def test_without_truths_it_is_agreement_with_all_draws():
    full = next(
        p
        for p in measure_frontier(made(truths=False))
        if (p.family, p.strategy) == ("every class, all times", "fixed:8")
    )
    assert full.accuracy is None
    assert full.agreement[0] == 1


def test_agreement_is_not_called_accuracy(capsys):
    print_frontier([next(measure_frontier(made(truths=False)))], as_json=False)
    assert "accuracy" not in (told := capsys.readouterr().out)
    assert "agreement" in told
    print_frontier([next(measure_frontier(made()))], as_json=False)
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("fit", [lambda tables: list(measure_frontier(tables)), lambda t: calibrate(t, error_rate=0.5)])
@pytest.mark.parametrize("count", range(1, 5))
def test_fewer_than_five_images_cannot_be_cross_validated(fit, count):
    tables = made()
    few = replace(
        tables, images=tables.images[:count], truth=tables.truth[:count], errors=tables.errors[:count],
        t=tables.t[:count],
    )  # fmt: skip
    with pytest.raises(InputError, match=f"at least 5 images; got {count}|needs a calibration on at least"):
        fit(few)


def test_a_tie_is_not_right():
    """Two classes of one prompt have the same errors: neither is the answer, whichever is the true one."""
    tables = made()
    doubled = tuple(table[[0, 1, 2, 3, 4, 4]] for table in tables.errors)  # the last two classes
    points = islice(measure_frontier(replace(tables, errors=doubled)), 4)
    (full,) = [p for p in points if (p.family, p.strategy) == ("every class, all times", "fixed:8")]
    best = [int(table.mean(1).argmin()) for table in doubled]
    right = [NAMES[k] == t and k < 4 for k, t in zip(best, tables.truth, strict=True)]
    assert full.accuracy[0] == pytest.approx(np.mean(right))


def test_one_draw_leaves_nothing_to_choose():
    tables = made()
    with pytest.raises(InputError, match="single draw"):
        list(measure_frontier(ErrorTables(NAMES, {}, ("x",), ("a",), (tables.errors[0][:, :1],), (torch.zeros(1),))))


def test_scaling_is_the_accuracy_of_each_runs_first_draws():
    runs = {"plain": made(), "late": made(lambda t: 3.0 * (t > 450))}
    points = list(scaling(runs))
    assert [(p.family, p.strategy) for p in points] == [(n, f"fixed:{i}") for n in runs for i in (1, 2, 4, 8)]
    for point in points:
        tables, n = runs[point.family], int(point.strategy[6:])
        right = [NAMES[int(e[:, :n].sum(1).argmin())] == t for e, t in zip(tables.errors, tables.truth, strict=True)]
        assert point.accuracy[0] == pytest.approx(np.mean(right))
        assert point.num_evaluations == n * K


def test_scaling_compares_the_same_labelled_images():
    with pytest.raises(InputError, match="late is of other images"):
        list(scaling({"plain": made(), "late": replace(made(), images=("x",) * M)}))
    with pytest.raises(InputError, match="without labels"):
        list(scaling({"plain": made(truths=False)}))


def test_figure(tmp_path):
    draw_frontier(list(plain_points()), "title", "accuracy", tmp_path / "f.png")
    assert imread(tmp_path / "f.png").std() > 0.05
