"""Runs of version 1: three that commit c11eb44 wrote, with what it computed from them, and such made by hand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_store import SPEC, row, stored, write

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis.outliers import scores
from diffusion_classifier.analysis.report import write_report
from diffusion_classifier.analysis.run_figures import draw_predictions, draw_single_times
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.error_tables import read_tables
from diffusion_classifier.runs.evaluation import evaluate
from diffusion_classifier.runs.evaluators import ClassEvaluator
from diffusion_classifier.runs.rescoring import rescore
from diffusion_classifier.runs.selection import choose
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows
from diffusion_classifier.runs.summary import compare, summarize
from diffusion_classifier.tasks import open_task

HERE = Path(__file__).parent / "version_1"
EXPECTED = json.loads((HERE / "expected.json").read_text())
LATER = ("kind", "unconditional", "shift", "channels_last", "notes", "prompt_names")
"""Fields that the first runs of version 1 lack."""


@pytest.mark.parametrize("name", ["classes", "contrastive", "pairs"])
def test_summaries_are_the_same(name):
    found = summarize(HERE / name)
    expected = EXPECTED[name]["summary"]
    for field in ("num_done", "calibration_error", "num_evaluations", "per_class"):
        assert getattr(found, field) == pytest.approx(expected[field])
    assert list(found.accuracy) == expected["accuracy"]
    assert (found.top5 and list(found.top5)) == expected["top5"]
    if found.composition is not None:
        shares = {score: list(share) for score, share in found.composition.overall.shares.items()}
        assert (shares, found.composition.note) == (EXPECTED[name]["shares"], EXPECTED[name]["note"])


@pytest.mark.parametrize("name", ["classes", "pairs"])
def test_rescored_to_the_same_predictions(tmp_path, name):
    loss = {"loss": "l1"} if name == "classes" else {}
    rescore(HERE / name, tmp_path / "again", temperature=2.0, weights=(1.0, 3.0), **loss)
    found = {r.id: [r.prediction, r.posterior, r.match_scores] for r in stored(tmp_path / "again")}
    assert found == EXPECTED[name]["rescored"]
    assert json.loads((tmp_path / "again" / "spec.json").read_text())["version"] == 2


def test_words_of_today():
    spec = read_spec(HERE / "classes")
    assert (spec.model_kind, spec.strategy, spec.extra_losses) == ("diffusion", "fixed:4", ("l1",))
    spec = read_spec(HERE / "contrastive")
    assert (spec.model_kind, spec.strategy) == ("contrastive", "one-pass")
    for name in ("classes", "pairs"):
        old = pq.read_table(HERE / name / "shards").to_pylist()
        for before, now in zip(old, stored(HERE / name), strict=True):
            assert (now.truth, now.prediction) == (before["label"], before["prediction"])
            assert (now.posterior, now.match_scores) == (before["posterior"], before["fits"])
            assert now.extra_errors == dict(before["also"])
    tables = read_tables(HERE / "classes")
    labels = {r["id"]: r["label"] for r in pq.read_table(HERE / "classes" / "shards").to_pylist()}
    assert dict(zip(tables.images, tables.truth, strict=True)) == labels


def test_figures_reports_and_comparisons(tmp_path):
    write_report(HERE / "classes", tmp_path / "report.html", open_task("fashion-sample")[1])
    draw_predictions("confusion", HERE / "classes", tmp_path / "confusion.png")
    draw_single_times(HERE / "classes", tmp_path / "times.png")
    assert set(scores(HERE / "classes")) == {"probability", "error"}
    rescore(HERE / "classes", tmp_path / "again")
    assert compare(HERE / "classes", tmp_path / "again").disagreement.value == 0


@pytest.mark.filterwarnings("ignore")
def test_resumed(tmp_path):
    """The two images that are left are evaluated as today's code does in a run of its own."""
    run = shutil.copytree(HERE / "classes", tmp_path / "run")
    task, source = open_task("fashion-sample")
    classifier = DiffusionClassifier.from_pretrained("fashion", device="cpu", dtype="float32", batch_size=40)
    evaluator = ClassEvaluator(task, store_errors=True, extra_losses=("l1",), options={"strategy": "fixed:4"})
    positions = choose(source, limit=6)
    rows = list(evaluate(classifier, source, run, evaluator, positions=positions))
    assert [r.id for r in rows] == [source.ids[i] for i in positions[4:]]
    assert stored(run)[4:] == rows
    assert json.loads((run / "spec.json").read_text())["version"] == 2
    assert list(evaluate(classifier, source, run, evaluator, positions=positions)) == []
    whole = list(evaluate(classifier, source, tmp_path / "whole", evaluator, positions=positions))
    for old, new in zip(stored(run), whole, strict=True):
        assert (old.id, old.truth, old.prediction) == (new.id, new.truth, new.prediction)
        assert old.posterior == pytest.approx(new.posterior, rel=1e-3)


def as_version_1(folder, lacks=()):
    """Rewrite a run as the code of version 1 stored it."""
    file = folder / "spec.json"
    spec = json.loads(file.read_text()) | {"version": 1}
    spec["also"], spec["usual_weights"] = spec.pop("extra_losses"), spec.pop("default_weights")
    if spec.pop("model_kind") != "diffusion":
        spec["strategy"] = "supervised"
    file.write_text(json.dumps({name: value for name, value in spec.items() if name not in lacks}))
    names = {"truth": "label", "extra_errors": "also", "match_scores": "fits"}
    for shard in (folder / "shards").glob("*.parquet"):
        table = pq.read_table(shard)
        table = table.rename_columns([names.get(name, name) for name in table.column_names])
        pq.write_table(table.drop_columns(["candidates", "tag", "fits"] if "kind" in lacks else []), shard)


@pytest.mark.parametrize("lacks", [(), LATER[:2], LATER[:3], LATER])
def test_first_runs_of_version_1_are_read_and_resumed(tmp_path, lacks):
    write(tmp_path / "run", range(2))
    as_version_1(tmp_path / "run", lacks)
    assert read_spec(tmp_path / "run") == SPEC
    assert stored(tmp_path / "run") == [row(i) for i in range(2)]
    write(tmp_path / "run", [2])
    assert read_spec(tmp_path / "run") == SPEC
    assert stored(tmp_path / "run") == [row(i) for i in range(3)]
    assert read_rows(tmp_path / "run", ["tag", "id"]).to_pylist() == [
        {"tag": None, "id": f"image {i}"} for i in range(3)
    ]


def test_one_pass_models(tmp_path):
    spec = replace(SPEC, model_kind="supervised", strategy="one-pass", loss="none")
    write(tmp_path / "run", [0], spec)
    as_version_1(tmp_path / "run")
    assert read_spec(tmp_path / "run") == spec
    write(tmp_path / "run", [1], spec)


def test_another_run_in_the_folder_is_still_rejected(tmp_path):
    write(tmp_path / "run", [0])
    as_version_1(tmp_path / "run")
    with pytest.raises(InputError, match=r'extra_losses \["l1"\] there, \[\] now'):
        write(tmp_path / "run", [1], replace(SPEC, extra_losses=()))
    assert json.loads((tmp_path / "run" / "spec.json").read_text())["version"] == 1
