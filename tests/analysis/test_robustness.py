import json
import shutil

import numpy as np
import pytest
from commands import error
from scipy.special import expit, logit
from scipy.stats import norm

from diffusion_classifier.analysis.robustness import ModelRuns, draw_effective, draw_severities, measure_robustness


def hits(share, count=2000, seed=0):
    right = np.zeros(count)
    right[: round(share * count)] = 1
    return np.random.default_rng(seed).permutation(right)


def model(name, plain, corrupted, supervised=True, seed=0):
    return ModelRuns(name, supervised, hits(plain, seed=seed), {"jpeg": {1: hits(corrupted, seed=seed + 100)}})


def on_line(plain):
    return float(expit(0.8 * logit(plain) - 0.7))


NETWORKS = [model(f"net {i}", p, on_line(p), seed=i) for i, p in enumerate((0.7, 0.8, 0.87, 0.93))]


def test_effective_robustness_is_what_is_above_the_line_in_logits():
    others = [
        model("on it", 0.85, on_line(0.85), supervised=False, seed=7),
        model("above", 0.85, on_line(0.85) + 0.1, supervised=False, seed=8),
        model("below", 0.75, on_line(0.75) - 0.05, supervised=False, seed=9),
    ]
    found = measure_robustness([*NETWORKS, *others])
    assert [r.effective for r in found[:4]] == [None] * 4
    for r, expected in zip(found[4:], (0, 0.1, -0.05), strict=True):
        value, low, high = r.effective
        assert value == pytest.approx(expected, abs=0.005)
        assert low < expected < high
        assert 0.02 < high - low < 0.08
    assert all(r.effective is None for r in measure_robustness([*NETWORKS[:2], *others]))  # no line through two


def test_the_interval_of_effective_robustness_covers_the_truth():
    """Of images and of networks, which scatter about the line; a model of another kind lies on it, or 3 points above.

    Images are as hard for one model as for another, by a normal variable that they share.
    """
    rng = np.random.default_rng(0)
    plain = np.array([*np.linspace(0.84, 0.93, 8), 0.91])
    covered = []
    for above in (0.0, 0.03) * 30:
        corrupted = expit(0.8 * logit(plain) - 0.7 + 0.3 * rng.standard_normal(9))
        corrupted[-1] = on_line(plain[-1]) + above
        difficulty = rng.standard_normal((2000, 1))
        alone, of_model = rng.standard_normal((2, 2000, 9))
        right = 0.7**0.5 * difficulty + 0.3**0.5 * alone < norm.ppf(plain)
        by = {}
        for severity in range(1, 6):
            own = 0.5**0.5 * difficulty + 0.2**0.5 * of_model + 0.3**0.5 * rng.standard_normal((2000, 9))
            by[severity] = np.where(np.arange(2000)[:, None] < 1000, own < norm.ppf(corrupted), np.nan)
        runs = [
            ModelRuns(f"{i}", i < 8, right[:, i] * 1.0, {"jpeg": {s: of[:, i] for s, of in by.items()}})
            for i in range(9)
        ]
        _, low, high = measure_robustness(runs)[-1].effective
        covered.append(low <= above <= high)
        assert high - low < 0.2
    assert np.mean(covered) >= 0.85  # 0.65 with the networks held fixed


def test_of_shifts_with_other_images_each_counts_as_much():
    """One of half the images, one of a test set of its own with a hundred times as many."""
    plain, own = hits(0.9, 100), hits(0.2, 10_000)
    half = np.r_[hits(0.6, 50), np.full(50 + 10_000, np.nan)]
    natural = np.r_[np.full(100, np.nan), own]
    runs = ModelRuns("a", True, np.r_[plain, np.full(10_000, np.nan)], {"jpeg": {1: half}, "imagenet-a": {0: natural}})
    (found,) = measure_robustness([runs])
    assert found.accuracy[0] == pytest.approx(0.9)
    assert found.mean[0] == pytest.approx(0.4)
    assert found.mean[2] - found.mean[1] == pytest.approx(3.92 * np.sqrt(0.24 / 50 + 0.16 / 10_000) / 2, rel=0.15)


def test_corruption_errors_are_relative_to_the_first_model():
    """As Hendrycks and Dietterich (2019) have it: sums over severities, ratio, mean over shifts."""

    def runs(name, a, b):
        by_shift = {"jpeg": a, "shear": b}
        return ModelRuns(
            name, True, hits(0.9), {n: {s: hits(1 - e) for s, e in enumerate(of, 1)} for n, of in by_shift.items()}
        )  # fmt: skip

    first, second = measure_robustness([runs("a", (0.1, 0.2), (0.3, 0.5)), runs("b", (0.2, 0.25), (0.2, 0.4))])
    assert first.corruption_error == pytest.approx(1)
    assert second.corruption_error == pytest.approx(((0.45 / 0.3) + (0.6 / 0.8)) / 2)
    assert second.mean[0] == pytest.approx(1 - (0.225 + 0.3) / 2)
    assert second.mean[1] < second.mean[0] < second.mean[2]
    assert second.by_shift["shear"][2][0] == pytest.approx(0.6)
    assert first.accuracy[0] == pytest.approx(0.9)


def test_figures_show_what_was_measured(monkeypatch, tmp_path):
    found = measure_robustness([*NETWORKS, model("other", 0.85, 0.6, supervised=False, seed=7)])
    drawn = []
    monkeypatch.setattr("diffusion_classifier.analysis.robustness.save", lambda figure, _: drawn.append(figure))
    draw_effective(found, tmp_path / "line.png")
    draw_severities(found, tmp_path / "severities.png")
    (line, *points) = drawn[0].axes[0].get_lines()
    x, y = line.get_data()
    assert y == pytest.approx(expit(0.8 * logit(x) - 0.7), abs=0.005)
    assert (x.min(), x.max()) == pytest.approx((0.7, 0.93))
    points = [tuple(of.get_xydata()[0]) for of in points if of.get_marker() not in ("None", "_", "|")]
    assert points == [pytest.approx((m.accuracy[0], m.mean[0])) for m in found]
    (panel,) = (ax for ax in drawn[1].axes if ax.get_title())
    assert panel.get_title() == "jpeg"
    for of, m in zip(panel.get_lines(), found, strict=True):
        assert tuple(of.get_ydata()) == pytest.approx((m.accuracy[0], m.mean[0]))


class TestCommand:
    @pytest.fixture
    def runs(self, call, model, photos, tmp_path):
        """Of one model, plain and under two severities."""
        for name, shift in (("plain", None), ("a", "jpeg:1"), ("b", "jpeg:4"), ("c", "shear:2")):
            given = () if shift is None else ("--shift", shift)
            options = ("--model", model, "--strategy", "fixed:2", "--batch-size", 8)
            assert call("evaluate", photos, "--out", tmp_path / name, *options, *given)[0] == 0
        return [tmp_path / name for name in ("plain", "a", "b", "c")]

    def test_a_table_and_figures(self, call, runs, tmp_path):
        files = [tmp_path / "figure.png", tmp_path / "line.png"]
        code, out, err = call("robustness", *runs, "--format", "json", "--figure", files[0], "--line", files[1])
        assert (code, err) == (0, f"drawn to {files[0]}\ndrawn to {files[1]}\n")
        (found,) = map(json.loads, out.splitlines())
        for name, shift, severity in (("a", "jpeg", "1"), ("b", "jpeg", "4"), ("c", "shear", "2")):
            summary = json.loads((tmp_path / name / "summary.json").read_text())
            assert found["by_shift"][shift][severity] == pytest.approx(summary["accuracy"])
        assert (found["corruption_error"], found["effective"]) == (1, None)
        assert all(file.stat().st_size > 10_000 for file in files)
        code, out, _ = call("robustness", *runs, "--format", "markdown")
        shares = [f"{100 * found['by_shift']['jpeg'][s][0]:.1f}" for s in ("1", "4")]
        assert f"| jpeg:1,4 | {' '.join(shares)} |" in out
        assert "| effective robustness | – |" in out

    def test_a_test_set_of_its_own_is_a_natural_shift(self, call, runs, model, photos, tmp_path):
        """Its images are others, though they have the same names."""
        other = shutil.copytree(photos, tmp_path / "other")
        options = ("--model", model, "--strategy", "fixed:2", "--batch-size", 8, "--limit", 6)
        assert call("evaluate", other, "--out", tmp_path / "natural", *options)[0] == 0
        given = (*runs[:2], "--natural", tmp_path / "natural")
        code, out, _ = call("robustness", *given, "--format", "json")
        found = json.loads(out)
        share = json.loads((tmp_path / "natural" / "summary.json").read_text())["accuracy"]
        assert (code, found["by_shift"][str(other)]) == (0, {"0": pytest.approx(share)})
        assert found["mean"][0] == pytest.approx((share[0] + found["by_shift"]["jpeg"]["1"][0]) / 2)
        _, out, _ = call("robustness", *given, "--format", "markdown")
        assert f"| {other} | {100 * share[0]:.1f} |" in out
        code, _, err = call("robustness", runs[0], *given[2:], "--figure", tmp_path / "figure.png")
        assert (code, error(err)) == (2, "the runs are under no shift that has severities to draw")

    def test_runs_that_do_not_go_together(self, call, runs, model, photos, tmp_path):
        second_model = shutil.copytree(model, tmp_path / "copy")
        as_before = ("--model", model, "--strategy", "fixed:2")
        call("evaluate", photos, "--out", tmp_path / "few", *as_before, "--limit", 6)
        call(
            "evaluate",
            photos,
            "--out",
            tmp_path / "other",
            "--model",
            model,
            "--strategy",
            "fixed:3",
            "--shift",
            "jpeg:2",
        )
        call(
            "evaluate",
            photos,
            "--out",
            tmp_path / "second",
            "--model",
            second_model,
            "--strategy",
            "fixed:2",
            "--limit",
            6,
        )
        for given, message in (
            ((*runs, tmp_path / "second"), "second has results for 6 images, which are not the same as those of"),
            ((tmp_path / "few", *runs[1:]), "which the runs without shift do not have"),
            ((*runs, "--natural", runs[1]), "natural shifts are test sets of their own"),
            ((*runs, runs[1]), "is a second run of"),
            ((*runs, tmp_path / "other"), "differ in strategy: only runs with the same settings can be compared"),
            (runs[1:], "under the shifts jpeg:1, jpeg:4, shear:2: each model needs a run without any"),
            (runs[:1], "under the shifts none:"),
            ((*runs, "--figure", tmp_path / "figure.doc"), "cannot be drawn"),
        ):
            code, _, err = call("robustness", *given)
            assert code == 2
            assert message in error(err)
