import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp, softmax

from diffusion_classifier.classifier import DiffusionClassifier
from diffusion_classifier.denoisers import ModelDefaults, load_denoiser
from diffusion_classifier.denoisers.default_weights import default_weights, training_weights
from diffusion_classifier.denoisers.families.gaussian import Gaussian
from diffusion_classifier.diffusion.prediction import PREDICTION_TYPES, to_noise
from diffusion_classifier.diffusion.schedules import EDM, RectifiedFlow, read_scheduler
from diffusion_classifier.diffusion.timestep_weights import elbo_weights, weights_at
from diffusion_classifier.errors import InputError
from diffusion_classifier.search.classification import decide
from diffusion_classifier.search.jobs import Cost, ScoredImage
from diffusion_classifier.search.posterior import log_posterior, mean_errors, paired_differences, probabilities

D = 48
SEEDS = st.integers(0, 2**32 - 1)


def scored(errors, active=None):
    errors = torch.as_tensor(errors, dtype=torch.float32)
    active = torch.ones(len(errors), dtype=torch.bool) if active is None else torch.as_tensor(active)
    return ScoredImage(
        "x.png", errors, active, torch.arange(errors.shape[1]), Cost(int((~errors.isnan()).sum()), 2.5, 0.5)
    )


def names(errors):
    return [f"class {i}" for i in range(len(errors))]


def answer(errors, active=None, **options):
    return decide(scored(errors, active), names(errors), **{"num_dimensions": D, **options})


@st.composite
def tables(draw, pruned=False):
    """An error table (K, N); if pruned, some classes but never all have only their first draws."""
    rng = np.random.default_rng(draw(SEEDS))
    num_classes, num_draws = draw(st.integers(2, 6)), draw(st.integers(2, 12))
    errors = 0.2 + 0.05 * rng.random((num_classes, 1)) + 0.05 * rng.random((num_classes, num_draws))
    active = np.ones(num_classes, dtype=bool)
    if pruned:
        active[list(draw(st.sets(st.integers(0, num_classes - 1), min_size=1, max_size=num_classes - 1)))] = False
        errors[~active, draw(st.integers(1, num_draws)) :] = np.nan
    return errors.astype(np.float32), active


class TestLogPosterior:
    @settings(deadline=None)
    @given(tables(), st.floats(0.01, 100), st.sampled_from(["sum", "mean"]), SEEDS)
    def test_equations_5_and_6(self, table, temperature, reduction, seed):
        mean = table[0].mean(1, dtype=np.float64)
        prior = np.random.default_rng(seed).random(len(mean)) + 0.01
        logits = -mean * (D if reduction == "sum" else 1) / temperature + np.log(prior)
        actual = log_posterior(
            torch.from_numpy(mean), num_dimensions=D, reduction=reduction, temperature=temperature, prior=7 * prior
        )
        np.testing.assert_allclose(actual, logits - logsumexp(logits), atol=1e-9)

    @settings(deadline=None)
    @given(tables())
    def test_equation_8(self, table):
        """Only differences of errors matter."""
        mean = table[0].mean(1, dtype=np.float64)
        expected = 1 / np.exp(D * (mean[:, None] - mean[None, :])).sum(1)
        np.testing.assert_allclose(log_posterior(torch.from_numpy(mean), num_dimensions=D).exp(), expected)
        far = log_posterior(torch.from_numpy(mean) + 1e6, num_dimensions=D)
        np.testing.assert_allclose(far.exp(), expected, rtol=1e-6)

    def test_limits_of_the_temperature(self):
        mean, prior = torch.tensor([0.3, 0.2, 0.25]), [0.5, 0.2, 0.3]
        hot = log_posterior(mean, num_dimensions=D, temperature=1e12, prior=prior).exp()
        cold = log_posterior(mean, num_dimensions=D, temperature=1e-300, prior=prior).exp()
        np.testing.assert_allclose(hot, prior, rtol=1e-9)
        np.testing.assert_allclose(cold, [0, 1, 0])

    def test_a_class_that_is_out_gets_nothing(self):
        actual = log_posterior(torch.tensor([0.2, torch.inf, 0.3]), num_dimensions=D, prior=[1, 9, 1]).exp()
        np.testing.assert_allclose(actual, softmax([-0.2 * D, -np.inf, -0.3 * D]), rtol=1e-6)

    @pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
    def test_bad_temperatures_are_refused(self, temperature):
        with pytest.raises(InputError, match=f"temperature .* got {temperature}"):
            log_posterior(torch.rand(3), num_dimensions=D, temperature=temperature)

    @pytest.mark.parametrize(
        "prior", [[0.5, 0.5], [[1, 1, 1]], [0.5, 0.5, 0], [1, 1, -1], [1, 1, float("nan")], [1, 1, float("inf")]]
    )
    def test_bad_priors_are_refused(self, prior):
        with pytest.raises(InputError, match="prior must hold 3 positive numbers"):
            log_posterior(torch.rand(3), num_dimensions=D, prior=prior)

    def test_unknown_reductions_are_refused(self):
        with pytest.raises(InputError, match="sum or mean; got 'max'"):
            log_posterior(torch.rand(3), num_dimensions=D, reduction="max")


@settings(deadline=None)
@given(tables(pruned=True), SEEDS)
def test_mean_errors_over_the_draws_that_each_class_has(table, seed):
    errors, _ = table
    weights = np.random.default_rng(seed).random(errors.shape[1]) + 0.1
    for w in (None, weights):
        expected = [np.average(row[~np.isnan(row)], weights=None if w is None else w[~np.isnan(row)]) for row in errors]
        actual = mean_errors(torch.from_numpy(errors), None if w is None else torch.from_numpy(w))
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@settings(deadline=None)
@given(tables(pruned=True))
def test_paired_differences_are_those_of_the_paired_t_test(table):
    errors, active = table
    reference = int(np.argmax(active))
    mean, standard_error = paired_differences(torch.from_numpy(errors), reference)
    for c, row in enumerate(errors.astype(np.float64)):
        common = ~np.isnan(row)
        if c == reference:
            assert (mean[c], standard_error[c]) == (0, 0)
        elif common.sum() < 2:
            assert mean[c] == pytest.approx(row[0] - float(errors[reference, 0]))
            assert standard_error[c].isnan()
        else:
            test = stats.ttest_rel(row[common], errors[reference].astype(np.float64)[common])
            low, high = test.confidence_interval(0.9)
            assert float(mean[c]) == pytest.approx((low + high) / 2)
            assert float(mean[c] / standard_error[c]) == pytest.approx(test.statistic)


class TestDecide:
    @settings(deadline=None)
    @given(tables())
    def test_without_pruning(self, table):
        errors, _ = table
        result = answer(errors)
        mean = errors.mean(1, dtype=np.float64)
        np.testing.assert_allclose(result.posterior, softmax(-D * mean))
        assert result.label == f"class {mean.argmin()}"
        assert result.score == float(result.posterior.max())
        assert list(result.scores) == [f"class {c}" for c in np.argsort(-result.posterior.numpy(), kind="stable")]
        assert result.scores == dict(zip(names(errors), result.posterior.tolist(), strict=True))
        assert torch.equal(result.bound, result.posterior)
        assert result.ties == ()
        assert torch.equal(result.errors, torch.from_numpy(errors))
        assert (result.name, result.num_evaluations, result.cost) == ("x.png", errors.size, 2.5)

    @settings(deadline=None)
    @given(tables(), st.floats(0.1, 10), st.sampled_from(["sum", "mean"]), SEEDS)
    def test_settings_reach_the_posterior(self, table, temperature, reduction, seed):
        errors, _ = table
        options = {
            "temperature": temperature,
            "reduction": reduction,
            "prior": (np.random.default_rng(seed).random(len(errors)) + 0.1).tolist(),
        }
        expected = log_posterior(mean_errors(torch.from_numpy(errors)), num_dimensions=D, **options)
        result = answer(errors, **options)
        torch.testing.assert_close(result.posterior, expected.exp())
        assert result.label == f"class {expected.argmax()}"

    @settings(deadline=None)
    @given(tables(pruned=True), st.randoms(use_true_random=False))
    def test_permuting_classes_permutes_everything(self, table, rng):
        errors, active = table
        order = list(range(len(errors)))
        rng.shuffle(order)
        prior = [1.0 + i for i in range(len(errors))]
        result = answer(errors, active, prior=prior)
        permuted = decide(
            scored(errors[order], active[order]),
            [f"class {i}" for i in order],
            num_dimensions=D,
            prior=[prior[i] for i in order],
        )
        assert permuted.label == result.label
        assert permuted.confidence == pytest.approx(result.confidence)
        for field in ("posterior", "bound", "margin", "standard_error", "errors"):
            torch.testing.assert_close(getattr(permuted, field), getattr(result, field)[order], equal_nan=True)

    @settings(deadline=None)
    @given(tables(), st.data())
    def test_a_duplicate_shares_the_probability(self, table, data):
        errors, _ = table
        twin = data.draw(st.integers(0, len(errors) - 1))
        alone, result = answer(errors), answer(np.vstack([errors, errors[twin]]))
        p = alone.posterior[[*range(len(errors)), twin]]
        torch.testing.assert_close(result.posterior, p / p.sum())
        if alone.label == f"class {twin}":
            assert result.label == alone.label  # the first
            assert result.ties == (f"class {len(errors)}",)
            assert result.confidence <= 0.5
        else:
            assert result.ties == ()

    def test_ties_are_up_to_what_float32_tells_apart(self):
        errors = np.array([[0.2], [0.2 * (1 + 2e-7)], [0.2 * (1 + 1e-5)]], dtype=np.float32).repeat(4, 1)
        assert answer(errors).ties == ("class 1",)
        assert answer(errors[[1, 0, 2]]).label == "class 1"
        assert answer(errors[[1, 0, 2]]).ties == ("class 0",)

    def test_a_prior_that_decides_is_no_tie(self):
        errors = np.full((2, 3), 0.25, dtype=np.float32)
        assert answer(errors).ties == ("class 1",)
        assert answer(errors, prior=[1, 2]).label == "class 1"
        assert answer(errors, prior=[1, 2]).ties == ()

    @settings(deadline=None)
    @given(tables(pruned=True), st.floats(0.1, 10), SEEDS)
    def test_eliminated_classes_have_a_bound_from_the_draws_on_which_they_lost(self, table, temperature, seed):
        errors, active = table
        prior = np.random.default_rng(seed).random(len(errors)) + 0.1
        result = answer(errors, active, temperature=temperature, prior=prior.tolist())
        assert result.posterior[active].sum() == pytest.approx(1)
        assert torch.equal(result.bound[active], result.posterior[active])
        winner = int(result.posterior.argmax())
        for c in np.flatnonzero(~active):
            assert result.posterior[c] == 0
            n = int((~np.isnan(errors[c])).sum())
            if n == 1:
                assert result.bound[c] == 1
                continue
            # What it would have among the others if it were as good as a paired t-test at 5 % allows it to be.
            lost, won = errors[c, :n].astype(np.float64), errors[winner, :n].astype(np.float64)
            low = stats.ttest_rel(lost, won).confidence_interval(0.9).low
            ratio = prior[c] / prior[winner] * np.exp(-D / temperature * np.array([low, (lost - won).mean()]))
            share = ratio * float(result.posterior[winner])
            at_most, at_its_mean = share / (1 + share)
            assert float(result.bound[c]) == pytest.approx(at_most, rel=1e-6)
            assert at_its_mean <= result.bound[c] <= 1

    def test_a_rival_that_would_have_won_is_not_bounded_by_the_winner(self):
        """It led on common draws but for one: nothing then says that the winner is the better of them."""
        errors = np.array([[0.30, 0.31, 0.30, 0.2, 0.2], [0.29, 0.29, 0.35, np.nan, np.nan]], dtype=np.float32)
        result = answer(errors, [True, False], temperature=0.1)
        assert result.score == 1
        assert result.bound[1] > 0.999

    def test_coverage_of_the_bound(self):
        """Of images for which a class is out after 4 draws, 95 % have a true posterior within the bound."""
        rng, margin, trials = np.random.default_rng(0), 0.02, 2000
        errors = np.full((trials, 2, 8), 0.5, dtype=np.float32)
        errors[:, 1, :4] += margin + 0.03 * rng.standard_normal((trials, 4))
        errors[:, 1, 4:] = np.nan
        truth = 1 / (1 + np.exp(D * margin))
        within = np.mean([bool(answer(e, [True, False]).bound[1] >= truth) for e in errors])
        assert abs(within - 0.95) < 4 * (0.95 * 0.05 / trials) ** 0.5

    @pytest.mark.parametrize("num_draws", [2, 4, 16])
    def test_confidence_is_not_above_what_a_simulation_shows(self, num_draws):
        """Two classes, differences N(μ, σ²), little known of either: the sign of their mean is that of μ as stated."""
        rng, trials = np.random.default_rng(num_draws), 2500
        mu, sigma = rng.uniform(-4, 4, trials), 10 ** rng.uniform(-2, 0.5, trials)
        errors = np.full((trials, 2, num_draws), 10, dtype=np.float32)
        errors[:, 1] += mu[:, None] + sigma[:, None] * rng.standard_normal((trials, num_draws))
        results = [answer(e) for e in errors]
        said = np.array([r.confidence for r in results])
        right = np.array([(r.label == "class 0") == (m > 0) for r, m in zip(results, mu, strict=True)])
        for low, high in [(0.5, 0.75), (0.75, 0.9), (0.9, 0.98), (0.98, 1.01)]:
            chosen = (low <= said) & (said < high)
            p, n = said[chosen].mean(), chosen.sum()
            assert right[chosen].mean() > p - 3 * (p * (1 - p) / n) ** 0.5
        assert right.mean() - said.mean() < 0.03  # nor far below

    def test_confidence_counts_every_rival(self):
        """Bonferroni: the tails of the paired t-tests against all rivals are added."""
        errors = 0.3 + 0.01 * np.arange(4)[:, None] + 0.02 * np.random.default_rng(3).standard_normal((4, 6))
        errors = errors.astype(np.float32)
        result = answer(errors)
        winner = result.class_names.index(result.label)
        tails = [
            stats.ttest_rel(errors[c].astype(float), errors[winner].astype(float), alternative="greater").pvalue
            for c in range(4)
            if c != winner
        ]
        assert 0 < sum(tails) < 1
        assert result.confidence == pytest.approx(1 - sum(tails), rel=1e-5)

    def test_confidence_without_a_second_draw_or_without_a_difference(self):
        assert answer([[0.1], [0.2]]).confidence == 0.5
        assert answer([[0.1], [0.2], [0.3]]).confidence == 0
        assert answer([[0.1, 0.3], [0.1, 0.3]]).confidence == 0.5
        assert answer([[0.1, 0.3], [0.2, 0.4]]).confidence == pytest.approx(1)

    def test_confidence_takes_the_prior_into_account(self):
        """Class 1 is slightly better, but a strong prior for class 0 decides, and more draws would not change that."""
        errors = np.random.default_rng(0).normal([[0.501], [0.5]], 0.002, (2, 50)).astype(np.float32)
        assert answer(errors).label == "class 1"
        result = answer(errors, prior=[100, 1])
        assert result.label == "class 0"
        assert result.confidence > 0.999
        assert result.margin[1] < 0

    def test_a_failure_has_no_answer(self):
        unknown = torch.full((2, 3), torch.nan)
        failed = ScoredImage("x.png", unknown, torch.ones(2).bool(), torch.arange(3), Cost(4, 4.0, 0.5), "broken")
        result = decide(failed, ["a", "b"], num_dimensions=D, notes=["first of 2 frames"])
        assert (result.label, result.score, result.confidence, result.ties) == (None, 0, 0, ())
        assert (result.failure, result.notes, result.num_evaluations) == ("broken", ("first of 2 frames",), 4)
        assert result.posterior.isnan().all()


def schedule_of(prediction_type):
    other = {"flow": RectifiedFlow(), "edm": EDM()}
    return other.get(prediction_type) or read_scheduler({"_class_name": "DDPMScheduler"})[0]


class TestTrainingWeights:
    @pytest.mark.parametrize(("loss", "power"), [("l2", 2), ("huber", 2), ("l1", 1)])
    @pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
    def test_an_error_of_the_noise_counts_as_one_of_the_output(self, prediction_type, loss, power):
        schedule = schedule_of(prediction_type)
        denoiser = Gaussian(torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2), schedule, prediction_type)
        u = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
        alpha, sigma = schedule(schedule.timesteps(u))
        noisy, one, other = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))
        errors = [to_noise(y, noisy, alpha, sigma, prediction_type) for y in (one, other)]
        ratio = (one - other).abs().pow(power).sum(1) / (errors[0] - errors[1]).abs().pow(power).sum(1)
        found = weights_at(training_weights(denoiser, loss), u)
        np.testing.assert_allclose(found / found[0], ratio / ratio[0], rtol=2e-2)

    def test_stable_diffusion_3_was_trained_at_logit_normal_times(self, model_folder):
        u = np.array([0.1, 0.5, 0.8])
        density = stats.norm.pdf(np.log(u / (1 - u))) / (u * (1 - u))
        found = weights_at(training_weights(load_denoiser(model_folder("sd3"))), torch.from_numpy(u))
        expected = density / (1 - u) ** 2
        np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=2e-2)

    def test_by_name(self, model_folder):
        clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", dtype="float32")
        reading = clf.settings_for(("cat", "dog"), weights="training")
        assert reading.weights == training_weights(clf.denoiser)
        assert len(set(reading.weights)) > 100  # this one predicts x

    @pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
    def test_they_are_usual_where_errors_are_divided_by_a_small_sigma(self, prediction_type):
        denoiser = Gaussian(
            torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2), schedule_of(prediction_type), prediction_type
        )
        for loss in ("l2", "l1"):
            expected = training_weights(denoiser, loss) if prediction_type == "sample" else None
            assert default_weights(denoiser, loss) == expected
            assert DiffusionClassifier(denoiser).settings_for(("a", "b"), loss=loss).weights == expected

    def test_they_are_usual_for_stable_diffusion_3(self, model_folder):
        clf = DiffusionClassifier.from_pretrained(model_folder("sd3"), device="cpu", dtype="float32")
        reading = clf.settings_for(("cat", "dog"))
        assert reading.weights == training_weights(clf.denoiser)
        low, middle, high = weights_at(reading.weights, torch.tensor([0.01, 0.5, 0.999]))
        assert low < 0.1 * middle
        assert high < middle

    def test_a_model_of_x_can_still_be_read_otherwise(self, model_folder):
        clf = DiffusionClassifier.from_pretrained(model_folder("class-unet"), device="cpu", dtype="float32")
        assert clf.settings_for(("cat", "dog"), weights="uniform").weights is None
        with pytest.raises(InputError, match="the training weights for a model that predicts x"):
            clf.settings_for(("cat", "dog"), weights="fitted")
        clf.denoiser.defaults = ModelDefaults(temperature=3.0, weights=(1.0, 3.0))
        assert clf.settings_for(("cat", "dog")).weights == (0.5, 1.5)
        assert clf.settings_for(("cat", "dog"), loss="l1").weights == training_weights(clf.denoiser, "l1")


def test_weights_of_the_bound_under_edm():
    """Half the slope of the log signal-to-noise ratio."""
    schedule, u = EDM(), np.array([0.01, 0.4, 0.99])
    alpha, sigma = (
        np.stack([a.double().numpy() for a in pair])
        for pair in zip(*(schedule(torch.from_numpy(1000 * (u + step))) for step in (-1e-3, 1e-3)), strict=True)
    )
    slope = np.diff(2 * np.log(alpha / sigma), axis=0)[0] / 2e-3
    found = elbo_weights(schedule, torch.from_numpy(1000 * u))
    np.testing.assert_allclose(found, np.abs(slope) / 2, rtol=2e-2)


@given(st.lists(st.floats(-1e5, 0), min_size=1, max_size=30), st.integers(0, 5))
def test_probabilities_keep_their_order_where_they_would_underflow(logits, out):
    """As those of a latent of 16 · 128 · 128 numbers do."""
    logs = torch.tensor([*logits, *[-torch.inf] * out], dtype=torch.float64).log_softmax(0)
    found = probabilities(logs)
    order = logs.argsort(descending=True, stable=True)
    assert (found[order].diff() <= 0).all()
    assert (found[: len(logits)] > 0).all()
    assert (found[len(logits) :] == 0).all()
    torch.testing.assert_close(found, logs.exp(), rtol=0, atol=1e-290)
    distinct = logs[order][: len(logits)].diff() < 0
    assert (found[order][: len(logits)].diff()[distinct & (logs[order][1 : len(logits)] < -690)] < 0).all()
