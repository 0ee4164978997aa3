import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusion_classifier.diffusion.draws import Draws, Timesteps
from diffusion_classifier.diffusion.schedules import RectifiedFlow, read_scheduler
from diffusion_classifier.errors import InputError

TABLE, _ = read_scheduler({"_class_name": "DDPMScheduler", "num_train_timesteps": 1000})
FLOW = RectifiedFlow(1000)
WORDS = st.integers(0, 2**64 - 1)


def halton(n):
    """The van der Corput sequence in base 2, by scipy, from its second term on: (n,)."""
    return stats.qmc.Halton(1, scramble=False).random(n + 1)[1:, 0]


class TestNoise:
    @pytest.mark.parametrize(
        ("seed", "key", "draw", "sha256"),
        [
            (0, 0, 0, "575963c27f7749e6"),
            (0, 1, 2, "88fea743c799bb2b"),
            (3, 2**63 + 1, 1, "ce8635bcee4622a6"),
            (2**64 - 1, 2**64 - 1, 2**32, "bf3601d509349aa1"),
        ],
    )
    def test_golden_bits(self, seed, key, draw, sha256):
        noise = Draws(seed=seed).noise(draw, key, (4, 5, 5))
        assert noise.shape == (4, 5, 5)
        assert noise.dtype == torch.float32
        assert hashlib.sha256(noise.numpy().tobytes()).hexdigest()[:16] == sha256

    @settings(deadline=None)
    @given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 2**40)), min_size=2, max_size=2, unique=True))
    def test_differs_between_any_two_of_seed_key_and_draw(self, triples):
        (seed, key, draw), (other_seed, other_key, other_draw) = triples
        noise, other = (
            Draws(seed=seed).noise(draw, key, (8,)),
            Draws(seed=other_seed).noise(other_draw, other_key, (8,)),
        )
        assert not torch.isclose(noise, other).all()

    def test_every_bit_of_seed_and_key_counts(self):
        """A list of Python integers from 2^63 on passes through float64 in numpy, which drops the low bits."""
        top = 2**64 - 1
        firsts = {float(Draws(seed=0).noise(0, top ^ (1 << bit), (1,))) for bit in range(64)}
        firsts |= {float(Draws(seed=top ^ (1 << bit)).noise(0, 0, (1,))) for bit in range(64)}
        assert len(firsts) == 128

    def test_is_standard_normal(self):
        noise = torch.stack([Draws().noise(draw, 11, (50_000,)) for draw in range(4)]).double()
        n = noise.numel()
        assert abs(float(noise.mean())) < 4 / n**0.5
        assert abs(float(noise.var()) - 1) < 4 * (2 / n) ** 0.5
        assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.001
        off_diagonal = torch.corrcoef(noise)[~torch.eye(4, dtype=torch.bool)]
        assert off_diagonal.abs().max() < 4 / noise.shape[1] ** 0.5

    def test_shorter_shape_is_a_prefix(self):
        """One draw never runs into the numbers of the next."""
        assert torch.equal(Draws().noise(0, 5, (100_000,))[:7], Draws().noise(0, 5, (7,)))
        assert not torch.isin(Draws().noise(1, 5, (3,)), Draws().noise(0, 5, (100_000,))).all()

    def test_given_noise_is_used(self):
        noise = torch.randn(3, 2, 4)
        assert torch.equal(Draws(given=noise).noise(1, 99, (2, 4)), noise[1])

    def test_leaves_global_generators_alone(self):
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        draws = Draws(Timesteps("random"))
        result = draws.noise(0, 1, (8,)), draws.times(TABLE, range(4), 1)
        after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
        assert before[2] == after[2]
        torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
        assert torch.equal(draws.noise(0, 1, (8,)), result[0])
        assert torch.equal(draws.times(TABLE, range(4), 1), result[1])


class TestTimesteps:
    def test_even_is_van_der_corput_from_its_second_term(self):
        even = Timesteps()
        assert torch.equal(even(TABLE, range(300)), torch.from_numpy(halton(300) * 1000).long())
        torch.testing.assert_close(even(FLOW, range(300)), torch.from_numpy(halton(300) * 1000).float(), rtol=0, atol=0)

    @pytest.mark.parametrize("k", [1, 3, 6])
    @pytest.mark.parametrize("text", ["even", "even:0.2-0.6"])
    def test_first_even_ones_are_evenly_spaced(self, k, text):
        timesteps = Timesteps.parse(text)
        low, high = timesteps.window
        n = 2**k - 1
        expected = 1000 * (low + (high - low) * torch.arange(1, n + 1) / (n + 1))
        torch.testing.assert_close(timesteps(FLOW, range(n)).sort().values, expected)

    @settings(deadline=None)
    @given(
        st.sampled_from(["even", "random", "random:0.3-0.4", "middle:0.5", "250,500,7"]),
        st.integers(0, 70).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 80))),
        WORDS,
        WORDS,
    )
    def test_nested(self, text, sizes, seed, key):
        timesteps, (n, more) = Timesteps.parse(text), sizes
        everything = timesteps(TABLE, range(more), seed, key)
        assert torch.equal(everything[:n], timesteps(TABLE, range(n), seed, key))
        assert torch.equal(everything[n:], timesteps(TABLE, range(n, more), seed, key))

    @pytest.mark.parametrize(
        ("text", "low", "high"), [("even:0.1-0.9", 100, 900), ("random:0.3-0.35", 300, 350), ("middle:0.5", 250, 750)]
    )
    @pytest.mark.parametrize("schedule", [TABLE, FLOW], ids=["table", "flow"])
    def test_window_is_kept_to_and_filled(self, text, low, high, schedule):
        t = Timesteps.parse(text)(schedule, range(200))
        assert t.min() >= low
        assert t.max() < high
        assert torch.histc((t.double() - low) / (high - low), 5, 0, 1).min() > 20

    def test_golden_random_times(self):
        times = Timesteps("random")(FLOW, range(4), 3, 2**63 + 1)
        assert times.tolist() == pytest.approx([160.320343, 259.738983, 331.645050, 570.444641])

    def test_random_is_uniform_and_per_image(self):
        draws = [Draws(Timesteps("random"), seed) for seed in (0, 0, 1)]
        times = [d.times(FLOW, range(2000), key) for d, key in zip(draws, (5, 6, 5), strict=True)]
        for t in times:
            assert stats.kstest(t.numpy() / 1000, "uniform").pvalue > 0.001
        correlation = torch.corrcoef(torch.stack(times))[~torch.eye(3, dtype=torch.bool)]
        assert correlation.abs().max() < 4 / 2000**0.5

    def test_fixed_cycles(self):
        assert Timesteps.parse("250, 500,7")(TABLE, range(7)).tolist() == [250, 500, 7, 250, 500, 7, 250]
        assert Timesteps.parse("250.5")(FLOW, [0, 9]).tolist() == [250.5, 250.5]

    @pytest.mark.parametrize(
        ("schedule", "t"), [(TABLE, 250.5), (TABLE, 1000), (TABLE, 1e9), (TABLE, -1), (FLOW, 1000.5), (FLOW, -0.5)]
    )
    def test_times_outside_of_the_schedule_are_refused(self, schedule, t):
        with pytest.raises(InputError, match=r"from 0 to 999|between 0 and 1000"):
            Timesteps("fixed", values=(500, t))(schedule, range(2))

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("even", Timesteps("even")),
            (" random ", Timesteps("random")),
            ("even:0.1-0.9", Timesteps("even", (0.1, 0.9))),
            ("random:0-0.5", Timesteps("random", (0.0, 0.5))),
            ("middle:0.5", Timesteps("even", (0.25, 0.75))),
            ("middle:1", Timesteps("even", (0.0, 1.0))),
            ("250", Timesteps("fixed", values=(250,))),
            ("250,500.5", Timesteps("fixed", values=(250, 500.5))),
        ],
    )
    def test_parse(self, text, expected):
        assert Timesteps.parse(text) == expected
        assert Timesteps.parse(str(expected)) == expected

    @pytest.mark.parametrize(
        "text",
        [
            *("", "foo", "even:", "even:0.9-0.1", "even:0.5", "even:0.5-0.5", "even:0-1.5", "even:nan-1", "even:a-b"),
            *("middle", "middle:", "middle:2", "middle:0", "middle:nan", "random:-0.1-0.5", "fixed", "fixed:0-1"),
            *("1e9", "250,,500", "250,", "250 500", "250,x", "250:0-1", "-5"),
        ],
    )
    def test_junk_is_refused(self, text):
        with pytest.raises(InputError, match="timesteps"):
            Timesteps.parse(text)
