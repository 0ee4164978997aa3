import csv
import io
import json
from contextlib import suppress

import pytest
import torch

from diffusion_classifier.cli.rows import Format, writer
from diffusion_classifier.search.classification import decide
from diffusion_classifier.search.jobs import Cost, ScoredImage

KEYS = ["image", "label", "score", "confidence", "scores", "num_evaluations", "cost", "seconds"]


def result(name="x.png", errors=((0.4, 0.2), (0.1, 0.1), (0.9, 0.9)), classes=("ant", "bee", "cat"), **options):
    scored = ScoredImage(
        name, torch.tensor(errors), torch.ones(len(errors)).bool(), torch.arange(2), Cost(6, 5.5, 1.23456)
    )
    return decide(scored, classes, num_dimensions=10, **options)


def failed(name="y.png"):
    none = torch.empty(2, 0)
    scored = ScoredImage(name, none, torch.zeros(2).bool(), none[0], Cost(), "is broken")
    return decide(scored, ["a", "b"], num_dimensions=1)


def printed(capsys, output, *rows, top=None):
    with writer(output, top) as write:
        for row in rows:
            write(row)
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


class TestRows:
    def test_keys_and_values(self):
        row = result().as_dict()
        assert list(row) == KEYS
        assert row["image"] == "x.png"
        assert row["label"] == "bee"
        assert list(row["scores"]) == ["bee", "ant", "cat"]
        expected = torch.softmax(torch.tensor([-1.0, -3.0, -9.0]).double(), 0)  # 10 dimensions × mean error
        assert list(row["scores"].values()) == pytest.approx(expected.tolist(), rel=1e-5)
        assert row["score"] == row["scores"]["bee"]
        assert row["confidence"] == result().confidence
        assert row["num_evaluations"] == 6
        assert row["seconds"] == 1.235

    def test_ties_and_notes_only_when_there_are_any(self):
        row = result(errors=((0.1, 0.1), (0.1, 0.1), (0.9, 0.9)), notes=("first of 2 frames",)).as_dict()
        assert list(row) == [*KEYS, "ties", "notes"]
        assert row["ties"] == ["bee"]
        assert row["notes"] == ["first of 2 frames"]

    def test_a_failure_has_its_reason_alone(self):
        assert failed().as_dict() == {"image": "y.png", "error": "is broken"}


class TestLines:
    def test_read_back_as_they_were(self, capsys):
        rows = [result("é [red]x[/red] ☃.png").as_dict(), failed().as_dict()]
        lines = printed(capsys, Format.jsonl, *rows).splitlines()
        assert [json.loads(line) for line in lines] == rows

    def test_are_printed_at_once(self, capsys):
        with writer(Format.jsonl, None) as write:
            write(failed().as_dict())
            assert capsys.readouterr().out.count("\n") == 1

    def test_top_cuts_the_scores(self, capsys):
        line = json.loads(printed(capsys, Format.jsonl, result().as_dict(), top=2))
        assert list(line["scores"]) == ["bee", "ant"]


class TestCsv:
    def test_read_back(self, capsys):
        tied = result('a,"b\n.png', errors=((0.1, 0.1), (0.1, 0.1), (0.9, 0.9)), notes=("n",)).as_dict()
        out = printed(capsys, Format.csv, result().as_dict(), tied, failed().as_dict())
        one, two, three = csv.DictReader(io.StringIO(out))
        assert json.loads(one["scores"]) == result().as_dict()["scores"]
        assert (one["image"], one["label"], one["ties"], one["notes"], one["error"]) == ("x.png", "bee", "", "", "")
        assert float(one["score"]) == result().as_dict()["score"]
        assert two["image"] == 'a,"b\n.png'
        assert json.loads(two["ties"]) == ["bee"]
        assert json.loads(two["notes"]) == ["n"]
        assert (three["image"], three["error"], three["label"], three["scores"]) == ("y.png", "is broken", "", "")

    def test_nothing_is_printed_before_the_first_row(self, capsys):
        assert printed(capsys, Format.csv) == ""

    def test_top_cuts_the_scores(self, capsys):
        (row,) = csv.DictReader(io.StringIO(printed(capsys, Format.csv, result().as_dict(), top=1)))
        assert list(json.loads(row["scores"])) == ["bee"]


class TestTable:
    @pytest.fixture(autouse=True)
    def _wide(self, monkeypatch):
        monkeypatch.setenv("COLUMNS", "200")

    def test_the_best_three(self, capsys):
        four = result(errors=((0.4, 0.2), (0.1, 0.1), (0.9, 0.9), (2, 2)), classes=("ant", "bee", "cat", "dog"))
        out = printed(capsys, Format.table, four.as_dict())
        p = four.as_dict()["scores"]
        assert f"{p['bee']:.3f}" in out
        assert f"ant {p['ant']:.3f}, cat {p['cat']:.3f}" in out
        assert "dog" not in out

    def test_top(self, capsys):
        out = printed(capsys, Format.table, result().as_dict(), top=1)
        assert "bee" in out
        assert "ant" not in out

    def test_what_looks_like_markup_is_printed_as_it_is(self, capsys):
        tied = result("[red]x.png", ((0.1, 0.1), (0.1, 0.1)), ("[bold]a[/bold]", ":smile:"), notes=("[i]n",))
        fine = result("[/]z.png", ((0.1, 0.1), (0.2, 0.2)), ("[bold]c", "[bold]d"))
        out = printed(
            capsys, Format.table, tied.as_dict(), fine.as_dict(), {"image": "[blue]y", "error": "[/red] broken"}
        )
        for text in (
            "[red]x.png ([i]n)",
            "[bold]a[/bold] (tied with :smile:)",
            "[/]z.png",
            "[bold]d 0.",
            "[blue]y",
            "[/red] broken",
        ):
            assert text in out

    def test_long_names_are_folded_not_cut(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        name = "".join(f"{i:03}" for i in range(40))
        out = printed(capsys, Format.table, result(name).as_dict())
        assert "".join(line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")) == name

    def test_what_is_done_is_printed_when_the_work_is_broken_off(self, capsys):
        with suppress(KeyboardInterrupt), writer(Format.table, None) as write:
            write(result().as_dict())
            raise KeyboardInterrupt
        assert "bee" in capsys.readouterr().out

    def test_no_rows_no_table(self, capsys):
        assert printed(capsys, Format.table) == ""
