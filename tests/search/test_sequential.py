from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.stats import binomtest, norm
from strategy_search import search

from diffusion_classifier.diffusion.draws import van_der_corput
from diffusion_classifier.errors import InputError
from diffusion_classifier.search.strategies import Fixed, Sequential, parse_strategy
from diffusion_classifier.search.strategies.sequential import largest_lag, log_e_value, mean_e_values

KINDS = ("gaussian", "heavy-tailed", "uneven over t", "nearly tied")


def tables(kind, count, num_classes=6, num_draws=64, seed=0):
    """Error tables (count, K, N) as they might be: classes apart by an exponential's share of the noise."""
    rng = np.random.default_rng(seed)
    shape = (count, num_classes, num_draws)
    mean = rng.exponential(0.6, shape[:2])
    if kind == "nearly tied":
        mean[:, :2] = rng.uniform(0, 0.03, (count, 2))
    noise = rng.standard_t(2.5, shape) / 5**0.5 if kind == "heavy-tailed" else rng.standard_normal(shape)
    effect = np.ones(num_draws)
    if kind == "uneven over t":
        u = np.array([van_der_corput(n + 1) for n in range(num_draws)])
        noise *= 0.1 + 3 * (1 - u) ** 3
        effect = 2 * (1 - u)
    common = 5 * rng.standard_normal((count, 1, num_draws))
    return torch.from_numpy(mean[..., None] * effect + noise / 2**0.5 + common).float()


def drops_the_winner(strategy, table):
    """Whether the class that leads over all draws was dropped before."""
    state, _ = search(strategy, table)
    return not bool(state.active[table.mean(1).argmin()])


@st.composite
def small_tables(draw):
    """(M, K, N) of small integers, in which ties are frequent and sums are exact."""
    shape = draw(st.integers(1, 12)), draw(st.integers(2, 4)), draw(st.integers(1, 6))
    cells = draw(st.lists(st.integers(0, 4), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
    return torch.tensor(cells).view(shape).float()


class TestEValue:
    @pytest.mark.parametrize("n", [2, 3, 10, 50])
    @pytest.mark.parametrize("mean", [-1.5, -0.1, 0.0, 0.3, 2.0])
    def test_is_the_ratio_of_likelihoods_averaged_over_positive_effects(self, n, mean):
        """Numerically over the effect and over the scale, which has density 1/σ: that of Student's t (Lai 1976)."""
        spread = 0.7 * (n - 1)
        effect, precision = np.append(0, np.geomspace(1e-6, 8, 2000)), np.linspace(1e-4, 8, 2001)  # precision = 1/σ

        def likelihood(effect):
            square = spread * precision**2 + n * (mean * precision - effect) ** 2
            return np.exp((n - 1) * np.log(precision) - square / 2)

        averaged = trapezoid([2 * norm.pdf(e) * trapezoid(likelihood(e), precision) for e in effect], effect)
        expected = averaged / trapezoid(likelihood(0.0), precision)
        found = np.exp(log_e_value(*map(np.array, (mean, spread, float(n), float(n)))))
        assert found == pytest.approx(expected, rel=1e-4)

    def test_of_a_class_is_the_mean_over_rivals_on_the_draws_that_both_have(self):
        table = tables("gaussian", 1, 4, 12)[0].double().numpy()
        table[2, 5:] = table[3, 1:] = np.nan
        found = mean_e_values(table, np.array([0, 1]), 20)
        for i, c in enumerate((0, 1)):
            total = 0.0
            for rival, n in ((1 - c, 12), (2, 5)):  # a single draw, as of the last class, is no evidence
                d = (table[c] - table[rival])[:n]
                spread = ((d - d.mean()) ** 2).sum()
                total += np.exp(log_e_value(*map(np.array, (d.mean(), spread, float(n), n / (1 - n / 20)))))
            assert found[i] == pytest.approx(total / 3, rel=1e-9)

    def test_differences_that_are_all_the_same_do_not_divide_by_zero(self):
        table = np.repeat([[1.0], [1.0], [2.0]], 9, axis=1)
        evidence = mean_e_values(table, np.arange(3), 9)
        assert np.isfinite(evidence).all()
        assert evidence[2] > 1e4
        assert (evidence[:2] < 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error_rate", [0.01, 0.1])
def test_without_calibration_the_promise_holds_for_every_kind_of_table(kind, error_rate):
    strategy = Sequential(32, error_rate)
    dropped = sum(drops_the_winner(strategy, table) for table in tables(kind, 1000, num_draws=32))
    assert binomtest(dropped, 1000, error_rate, alternative="greater").pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_with_calibration_the_promise_holds_for_every_kind_of_table(kind):
    """On average over calibrations, too: of some it is a little less, of others a little more."""
    dropped = 0
    for seed in range(4):
        lags = sorted(map(largest_lag, tables(kind, 250, seed=100 + seed)))
        strategy = Sequential(64, 0.05, tuple(lags))
        dropped += sum(drops_the_winner(strategy, table) for table in tables(kind, 250, seed=seed))
    assert binomtest(dropped, 1000, 0.05, alternative="greater").pvalue > 0.01


class TestCalibrated:
    @settings(deadline=None)
    @given(small_tables(), st.sampled_from([0.1, 0.2, 0.34, 0.5, 0.9]))
    def test_the_promise_is_exact_for_any_tables(self, tables, error_rate):
        """Of M + 1 tables, each met by a strategy that the other M calibrate, no more than the share may lose."""
        lost = 0
        for i, table in enumerate(tables):
            lags = sorted(largest_lag(other) for j, other in enumerate(tables) if j != i)
            if error_rate * len(tables) < 1:
                with pytest.raises(InputError, match="needs a calibration"):
                    Sequential(tables.shape[2], error_rate, tuple(lags))
                return
            strategy = Sequential(tables.shape[2], error_rate, tuple(lags))
            state, _ = search(strategy, table)
            sums = table.sum(1)
            lost += not bool((state.active & (sums == sums.min())).any())
        assert lost <= error_rate * len(tables)

    @settings(deadline=None)
    @given(small_tables())
    def test_drops_whoever_is_further_behind_than_the_quantile(self, tables):
        *others, table = tables
        others = [*others, *tables[:1]] * 5
        lags = sorted(map(largest_lag, others))
        threshold = lags[int(np.ceil(0.7 * (len(lags) + 1))) - 1]
        left, evaluated = set(range(len(table))), torch.zeros_like(table, dtype=torch.int64)
        for n in range(table.shape[1]):
            if len(left) > 1:
                evaluated[sorted(left), n] = 1
                sums = {c: table[c, : n + 1].sum() for c in left}
                left = {c for c in left if sums[c] - min(sums.values()) <= threshold}
        state, count = search(Sequential(table.shape[1], 0.3, tuple(lags)), table)
        assert torch.equal(count, evaluated)
        assert set(state.undecided.nonzero().squeeze(1).tolist()) == left

    def test_lag_of_a_winner_who_was_behind_once(self):
        table = torch.tensor([[5.0, 0.0, 0.0], [1.0, 2.0, 4.0], [2.0, 2.0, 9.0]])
        assert largest_lag(table) == 4.0  # 5 against 1 at first, 5 against 3 then, and 5 against 7 in the end
        assert largest_lag(table[1:]) == 0.0

    def test_doubt_is_the_share_of_winners_that_were_as_far_behind(self):
        strategy = Sequential(4, 0.2, (0.0, 0.0, 1.0, 2.0))
        state = strategy.update(strategy.init(4), torch.tensor([[3.0], [4.0], [4.5], [6.0]]))
        assert state.doubt.tolist() == [1.0, 0.6, 0.4, 0.2]
        assert state.undecided.tolist() == [True, True, True, False]
        assert state.active.all()  # compared in the last round


class TestSearch:
    @pytest.fixture(params=["calibrated", "not calibrated"])
    def strategy(self, request):
        lags = sorted(map(largest_lag, tables("gaussian", 200, seed=1)))
        return Sequential(64, 0.05, tuple(lags) if request.param == "calibrated" else None)

    def test_answers_as_all_draws_do_at_a_fraction_of_the_cost(self, strategy):
        spent, other = 0, 0
        some = tables("gaussian", 100, seed=2)
        for table in some:
            state, count = search(strategy, table)
            assert count.max() <= 1
            known = ~state.errors.isnan()
            assert torch.equal(known, count == 1)
            assert torch.equal(state.errors[known], table[known])
            means = state.errors[:, : state.num_done].mean(1).where(state.active, torch.inf)
            other += int(means.argmin()) != int(table.mean(1).argmin())
            spent += int(count.sum())
        assert other <= 10
        assert spent < (0.5 if strategy.lags else 0.7) * some.numel()

    def test_permuting_classes_permutes_everything(self, strategy):
        for i, table in enumerate(tables("nearly tied", 20)):
            order = torch.randperm(len(table), generator=torch.Generator().manual_seed(i))
            (state, count), (other, other_count) = search(strategy, table), search(strategy, table[order])
            assert torch.equal(other_count, count[order])
            assert torch.equal(other.undecided, state.undecided[order])
            torch.testing.assert_close(other.doubt, state.doubt[order])

    def test_a_hopeless_class_costs_little_and_changes_no_answer(self, strategy):
        for table in tables("gaussian", 20):
            more = torch.cat([table, table.amax(0, keepdim=True) + 40])
            (state, count), (other, other_count) = search(strategy, table), search(strategy, more)
            assert other.undecided[:-1].nonzero().tolist() == state.undecided.nonzero().tolist()
            assert not other.undecided[-1]
            assert other_count[-1].sum() <= (1 if strategy.lags else 5)
            if strategy.lags:
                assert torch.equal(other_count[:-1], count)

    def test_equals_stay_undecided_to_the_end(self, strategy):
        table = tables("gaussian", 1)[0]
        best = int(table.mean(1).argmin())
        state, _ = search(strategy, torch.cat([table, table[best : best + 1]]))
        assert state.num_done == 64
        assert state.undecided[[best, -1]].all()
        assert state.doubt[[best, -1]].tolist() == [1.0, 1.0]

    def test_with_all_draws_spent_there_is_no_doubt_about_who_leads(self, strategy):
        table = torch.zeros(2, 64)
        table[1, ::2], table[1, 1::2] = 1.0, -0.99
        state, count = search(strategy, table)
        assert count.sum() == 128
        assert state.undecided.all()  # more draws than these might turn it
        assert state.doubt.tolist() == [1.0, 0.0]

    def test_state_is_not_changed_by_an_update(self, strategy):
        state = strategy.init(3)
        strategy.update(state, torch.tensor([[1.0], [2.0], [300.0]]))
        assert state.errors.isnan().all()
        assert state.undecided.all()
        assert (state.doubt == 1).all()


def test_one_draw_is_fixed_with_one_draw():
    table = tables("gaussian", 1)[0]
    for strategy in (Sequential(1), Sequential(1, 0.5, (0.0,))):
        state, count = search(strategy, table[:, :1])
        assert torch.equal(state.errors, search(Fixed(1), table[:, :1])[0].errors)
        assert count.all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequential:0", "at least 1 draw is needed; got 0"),
        ("sequential:9/0", "between 0 and 1; got 0"),
        ("sequential:9/1", "between 0 and 1; got 1"),
        ("sequential:9/nan", "between 0 and 1; got nan"),
        *((f"sequential{junk}", "not known.*sequential:250/0.01") for junk in ("", ":", ":9/", ":x/1", ":9/0.1/2")),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_with_the_values(text, message):
    with pytest.raises(InputError, match=message):
        parse_strategy(text)


def test_too_few_images_for_the_error_rate_are_refused():
    with pytest.raises(InputError, match=r"0\.01 needs a calibration on at least 99 images; this one has 98"):
        Sequential(9, 0.01, (0.0,) * 98)
    Sequential(9, 0.01, (0.0,) * 99)


@pytest.mark.parametrize(
    ("text", "strategy"), [("sequential:64", Sequential(64)), ("sequential:64/0.05", Sequential(64, 0.05))]
)
def test_parse_reads_what_str_writes(text, strategy):
    assert parse_strategy(text) == strategy
    assert parse_strategy(str(replace(strategy, lags=(0.0,) * 99))) == strategy
