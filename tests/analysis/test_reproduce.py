"""The paper in miniature, with a handful of images."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import parse

from diffusion_classifier.analysis.paper import claims
from diffusion_classifier.analysis.paper import reproduce as miniature
from diffusion_classifier.metrics import Interval
from diffusion_classifier.runs.row import ResultRow
from diffusion_classifier.runs.store import read_rows

COUNTS = {"fashion": 8, "fashion-fast": 8, "scenes": 4, "scenes/contrastive": 4}
FEW = {"tables": {"strategy": "fixed:32"}, "pairs": {"strategy": "fixed:4", "timesteps": "even:0.75-1"}}


@pytest.fixture
def small(monkeypatch):
    works = tuple(
        replace(plan, quick=COUNTS[plan.model], options=FEW.get(plan.name, plan.options))
        for plan in miniature.PAPER_RUNS
    )
    nouns = {"options": {"strategy": "fixed:4"}}
    works = tuple(replace(plan, **nouns) if plan.name == "nouns" else plan for plan in works)
    monkeypatch.setattr(miniature, "PAPER_RUNS", works)
    monkeypatch.setattr(miniature, "DRAWN_STUDENT_RUN", replace(miniature.DRAWN_STUDENT_RUN, quick=8))
    monkeypatch.setattr(miniature, "QUICK_DRAWN", 1)
    monkeypatch.setattr(miniature, "SUPERVISED", replace(miniature.SUPERVISED, epochs=1, batch_size=10))
    monkeypatch.setattr(miniature, "QUICK_INVERTED", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_every_claim_gets_a_number_and_a_second_call_repeats_no_work(tmp_path, call, monkeypatch):
    code, out, _ = call("reproduce", "--quick", "--out", tmp_path, "--dtype", "float32")
    assert code == 0
    page = (tmp_path / "quick/report.html").read_text()
    assert page.count("<tr>") > 10
    assert page.count("<img") == 4
    assert "http" not in page.split("<img")[0].replace("https://arxiv", "")
    assert out.count("holds") + out.count("not decided") + out.count("does not hold") >= 10
    for plan in (*miniature.PAPER_RUNS, miniature.DRAWN_STUDENT_RUN):
        assert len(read_rows(tmp_path / "quick" / plan.name)) == COUNTS.get(plan.model, 8)

    def never(*_, **__):
        raise AssertionError("an image is answered twice")

    monkeypatch.setattr(ResultRow, "with_result", never)
    assert call("reproduce", "--quick", "--out", tmp_path, "--dtype", "float32")[:2] == (0, out)


def test_what_is_expected_is_told(tmp_path, monkeypatch):
    told = []
    plan = miniature.PaperRun("some", "scenes/contrastive", "scenes-nouns", 5, 3, 0.5)
    miniature._run(plan, plan.model, tmp_path / "some", True, lambda *a: told.append(a), {})
    assert told == [("some", 0.0), *[("some", 0.5)] * 3]
    told.clear()
    miniature._run(plan, plan.model, tmp_path / "some", True, lambda *a: told.append(a), {})
    assert told == [("some", 1.5)]
    monkeypatch.setattr(miniature, "PAPER_RUNS", (plan,))
    monkeypatch.setattr(miniature, "DRAWN_STUDENT_RUN", plan)
    assert miniature.expected_seconds(True) == 3 + miniature.QUICK_INVERTED + 100 * 0.4


def test_commands_that_repeat_the_runs_are_commands():
    given = {"device": "cpu", "dtype": "float32", "batch_size": "auto"}
    assert sum("--dtype float32" in command for command in miniature._commands(True, given)) == 9
    for command in [*miniature._commands(True, {}), *miniature._commands(True, given)]:
        parse(shlex.split(command))


def test_draws_are_chosen_by_their_rank_in_time():
    u = torch.tensor([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1]])
    errors = torch.arange(12.0).view(2, 2, 3)
    found = claims._drawn(errors, u.argsort(1), np.array([0, 2]))
    assert found.tolist() == [[[1, 2], [4, 5]], [[8, 6], [11, 9]]]


def test_verdicts():
    claim = claims.Claim("a", "b", "c", None)
    assert [claims.verdict(replace(claim, holds=h)) for h in (None, True, False)] == [
        "not decided",
        "holds",
        "does not hold",
    ]
    assert [claims._above(Interval(*d)) for d in ((0.1, 0.0, 0.2), (0.1, 0.05, 0.2), (-0.1, -0.2, -0.05))] == [
        None,
        True,
        False,
    ]
