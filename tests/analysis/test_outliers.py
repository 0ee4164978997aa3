import json

import numpy as np
import pytest
import torch
from commands import error, save
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from diffusion_classifier.analysis.outliers import auroc, scores
from diffusion_classifier.baselines.features import Features
from diffusion_classifier.data.images import load_image
from diffusion_classifier.runs.store import read_rows

NAMES = "dark,grey,light"
few = st.lists(st.integers(0, 5), min_size=2, max_size=30)


@given(few, few)
def test_the_area_is_scikit_learns(known, unknown):
    truth = [1] * len(known) + [0] * len(unknown)
    area, low, high = auroc(np.array(known, float), np.array(unknown, float))
    assert area == pytest.approx(roc_auc_score(truth, known + unknown))
    assert 0 <= low <= area <= high <= 1


def test_the_interval_covers_as_often_as_it_says():
    """Of two normal distributions a distance d apart the area is Φ(d / √2)."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(1000):
        _, low, high = auroc(rng.normal(size=60) + 1, rng.normal(size=40))
        inside += low < 0.7602499 < high
    assert 0.92 < inside / 1000 < 0.975


@pytest.mark.parametrize("counts", [(5, 8), (30, 20), (200, 100)])
def test_values_that_do_not_overlap_have_an_interval_all_the_same(counts):
    """Were the area at its end, so many would seldom lie so."""
    m, n = counts
    area, low, high = auroc(np.arange(n, n + m, dtype=float), np.arange(n, dtype=float))
    assert (area, high) == (1, 1)
    assert auroc(np.arange(n, dtype=float), np.arange(n, n + m, dtype=float)) == pytest.approx((0, 0, 1 - low))
    rng, apart = np.random.default_rng(0), 2**0.5 * norm.ppf(low)
    seldom = np.mean([rng.normal(size=m).min() + apart > rng.normal(size=n).max() for _ in range(2000)])
    assert 0 < 1 - low < 0.4
    assert seldom < 0.05
    assert auroc(np.ones(m), np.ones(n)) == (0.5, 0, 1)


@pytest.fixture
def strange(tmp_path):
    for i in range(12):
        save(tmp_path / "strange" / f"{i}.png", 255 if i % 2 else 0, i)
    return tmp_path / "strange"


def test_scores_are_those_of_the_model(call, model, photos, strange, tmp_path):
    call("baseline", "gaussian", photos, "--model", model, "--out", tmp_path / "fitted")
    call("evaluate", strange, "--class-names", NAMES, "--model", tmp_path / "fitted", "--out", tmp_path / "run")
    found = scores(tmp_path / "run")
    assert set(found) == {"probability", "energy"}
    fitted = Features.from_pretrained(tmp_path / "fitted", device="cpu")
    for i, id_ in enumerate(read_rows(tmp_path / "run", ["id"])["id"].to_pylist()):
        logits = fitted.logits(load_image(strange / id_).image).double()
        assert found["energy"][i] == pytest.approx(float(logits.logsumexp(0)), rel=1e-4)
        assert found["probability"][i] == pytest.approx(float(logits.softmax(0).max()), rel=1e-4)


class TestCommand:
    def test_of_a_diffusion_model(self, call, model, photos, strange, tmp_path):
        options = ("--model", model, "--store-errors", "--batch-size", 8)
        fixed = ("--strategy", "fixed:3")
        call("evaluate", photos, "--out", tmp_path / "known", *options, *fixed)
        call("evaluate", strange, "--class-names", NAMES, "--out", tmp_path / "strange-run", *options, *fixed)
        code, out, _ = call("outliers", tmp_path / "known", tmp_path / "strange-run", "--format", "json")
        told = {row["score"]: row for row in map(json.loads, out.splitlines())}
        assert (code, set(told)) == (0, {"probability", "error"})
        best = []
        for folder in ("known", "strange-run"):
            errors = torch.tensor(read_rows(tmp_path / folder, ["errors"])["errors"].to_pylist())
            best.append((-errors.double().mean(2).amin(1)).tolist())
        expected = roc_auc_score([1] * 30 + [0] * 12, best[0] + best[1])
        assert told["error"]["auroc"][0] == pytest.approx(expected)
        passed = sum(b >= np.quantile(best[0], 0.05) for b in best[1]) / 12
        assert told["error"]["false_positives"] == pytest.approx(passed)
        code, out, _ = call("outliers", tmp_path / "known", tmp_path / "strange-run")
        assert (code, f"{expected:.3f} (" in out) == (0, True)
        for name, strategy in (
            ("eliminated", ("--strategy", "staged:1,3/2,1")),
            ("random", (*fixed, "--timesteps", "random")),
        ):
            code, *_ = call("evaluate", photos, "--out", tmp_path / name, *options, *strategy)
            assert (code, set(scores(tmp_path / name))) == (0, {"probability"})  # draws differ from image to image

    def test_bad_input(self, call, model, photos, tmp_path):
        few = ("--strategy", "fixed:1", "--limit", 3, "--batch-size", 8)
        call("evaluate", photos, "--out", tmp_path / "known", "--model", model, *few)
        other = ("--strategy", "fixed:2", "--loss", "l1", "--weights", "uniform")
        call("evaluate", photos, "--out", tmp_path / "l1", "--model", model, *few, *other)
        call("baseline", "gaussian", photos, "--model", model, "--out", tmp_path / "fitted")
        call("evaluate", photos, "--model", tmp_path / "fitted", "--out", tmp_path / "other", "--limit", 3)
        for arguments, message in (
            ((tmp_path / "known", tmp_path / "other"), "is of another model than"),
            ((tmp_path / "known", tmp_path / "l1"), "l1 and " + str(tmp_path / "known") + " differ in loss, strategy:"),
            ((tmp_path / "known", photos), "is not the folder of a run"),
        ):
            code, _, err = call("outliers", *arguments)
            assert (code, message in error(err)) == (2, True)
