import json
from dataclasses import replace

import numpy as np
import pytest
from run_files import SPEC, row
from scipy.stats import binomtest

from diffusion_classifier.errors import InputError
from diffusion_classifier.metrics import share_interval
from diffusion_classifier.runs.row import ResultRow
from diffusion_classifier.runs.store import open_run
from diffusion_classifier.runs.summary import compare, summarize, write_summary

NAMES = tuple("abcdefg")
SPEC = replace(SPEC, class_names=NAMES, num_images=200, metric="mean_per_class")


def made(folder, skill=0.7, seed=0, count=200, spec=SPEC, failed=()):
    """Answers that are right with a probability that falls from class to class."""
    rng = np.random.default_rng(seed)
    told = []
    with open_run(folder, spec) as run:
        for i in range(count):
            truth = i % 7
            posterior = rng.dirichlet(np.ones(7))
            best = truth if rng.random() < skill - 0.05 * truth else (truth + 1) % 7
            posterior[[best, posterior.argmax()]] = posterior[[posterior.argmax(), best]]
            posterior = np.where(posterior < 0.03, 0, posterior)
            posterior /= posterior.sum()
            values = {
                "id": str(i), "truth": NAMES[truth], "prediction": NAMES[best], "posterior": posterior.tolist(),
                "num_evaluations": i, "cost": i / 2, "undecided": ["a", "b"] if i % 4 == 0 else [],
            }  # fmt: skip
            if i in failed:
                values = {"id": str(i), "truth": NAMES[truth], "status": "failed", "reason": f"no image {i}"}
            run.write(replace(row(i), **values) if i not in failed else ResultRow(**values))
            if i not in failed:
                told.append((truth, best, posterior))
    return told


def test_against_plain_loops(tmp_path):
    told = made(tmp_path / "run", failed=(3, 9))
    found = summarize(tmp_path / "run")
    right = [truth == best for truth, best, _ in told]
    assert (found.num_images, found.num_done, found.num_failed) == (200, 198, 2)
    assert found.reasons == ("3: no image 3", "9: no image 9")
    assert found.accuracy[0] == pytest.approx(np.mean(right))
    per_class = {NAMES[k]: np.mean([t == b for t, b, _ in told if t == k]) for k in range(7)}
    assert found.per_class == pytest.approx(per_class)
    assert found.mean_per_class[0] == pytest.approx(np.mean(list(per_class.values())))
    top5 = [truth in np.argsort(p)[-5:] and p[truth] > 0 for truth, _, p in told]
    assert found.top5[0] == pytest.approx(np.mean(top5))
    assert 0 < np.mean(top5) < 1
    scores = np.array([p.max() for _, _, p in told])
    bins = np.ceil(scores * 15)
    ece = sum(abs(np.sum(scores[bins == b] - np.array(right)[bins == b])) for b in set(bins)) / len(told)
    assert found.calibration_error == pytest.approx(ece)
    kept = [i for i in range(200) if i not in (3, 9)]
    assert found.num_evaluations == pytest.approx(np.mean(kept))
    assert found.cost == pytest.approx(np.mean(kept) / 2)
    assert found.undecided == pytest.approx(np.mean([i % 4 == 0 for i in kept]))


def test_the_bootstrap_of_the_mean_per_class_is_near_the_binomial_interval(tmp_path):
    """Where classes are alike in size and difficulty the mean over them is the accuracy."""
    told = made(tmp_path / "run", count=196)
    found = summarize(tmp_path / "run")
    spread = np.sqrt(np.mean([np.var([t == b for t, b, _ in told if t == k]) for k in range(7)]) / 196)
    assert found.mean_per_class[2] - found.mean_per_class[1] == pytest.approx(2 * 1.96 * spread, rel=0.08)
    assert found.mean_per_class[1] < found.mean_per_class[0] < found.mean_per_class[2]


def test_classes_without_an_image_count_in_no_mean(tmp_path):
    made(tmp_path / "run", count=3)
    found = summarize(tmp_path / "run")
    assert set(found.per_class) == {"a", "b", "c"}
    assert found.mean_per_class[0] == found.accuracy[0]


def test_comparison(tmp_path):
    a, b = made(tmp_path / "a"), made(tmp_path / "b", skill=0.95, seed=1, failed=(0,))
    found = compare(tmp_path / "a", tmp_path / "b")
    pairs = [(x[0] == x[1], y[0] == y[1]) for x, y in zip(a[1:], b, strict=True)]
    assert found.num_images == 199
    assert (found.only_first, found.only_second) == (pairs.count((True, False)), pairs.count((False, True)))
    assert found.p_value == binomtest(found.only_second, found.only_first + found.only_second).pvalue
    difference = np.mean([y - x for x, y in np.array(pairs, int)])
    assert found.difference[0] == pytest.approx(difference)
    assert found.bootstrap == pytest.approx(found.difference[1:], abs=0.02)
    other = [x[1] != y[1] for x, y in zip(a[1:], b, strict=True)]
    assert found.disagreement == share_interval(__import__("torch").tensor(other))


def test_a_run_compared_with_itself_differs_in_nothing(tmp_path):
    made(tmp_path / "a")
    found = compare(tmp_path / "a", tmp_path / "a")
    assert (found.difference[0], found.p_value, found.disagreement[0]) == (0, 1, 0)
    assert found.bootstrap == (0, 0)


def test_runs_that_cannot_be_compared(tmp_path):
    made(tmp_path / "a", count=4)
    made(tmp_path / "other", count=4, spec=replace(SPEC, data="else"))
    made(tmp_path / "failed", count=4, failed=range(4))
    with pytest.raises(InputError, match="are of different data"):
        compare(tmp_path / "a", tmp_path / "other")
    with pytest.raises(InputError, match="no image in common"):
        compare(tmp_path / "a", tmp_path / "failed")
    with pytest.raises(InputError, match="is not the folder of a run"):
        summarize(tmp_path)


def test_nothing_done_yet(tmp_path):
    made(tmp_path / "run", count=0)
    found = summarize(tmp_path / "run")
    assert (found.num_done, found.accuracy, found.per_class) == (0, None, None)


def test_kept_beside_the_rows(tmp_path):
    made(tmp_path / "run", count=20)
    summary = write_summary(tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert stored["accuracy"] == pytest.approx(summary.accuracy)
    assert stored["metric"] == "mean_per_class"
