import ast
import importlib.util
import inspect
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from diffusion_classifier.runs import spec
from diffusion_classifier.runs.row import (
    RESCORED_COLUMNS,
    SCHEMA,
    SUMMARY_COLUMNS,
    ResultRow,
    rows_to_table,
    table_to_rows,
)

TOOL = Path(__file__).parents[2] / "tools" / "row_table.py"
FULL = ResultRow(
    id="a", truth="cat", prediction="dog", posterior=[0.25, 0.75], confidence=0.5, undecided=["cat", "dog"],
    num_evaluations=4, cost=3.5, seconds=0.25, notes=["first of 2 frames"],
    errors=[[1.0, 2.0], [0.5, float("inf")]], timesteps=[500.0, 250.0],
    extra_errors={"l1": [[1.0, 2.0], [3.0, 4.0]], "huber": [[0.0, 0.5], [0.25, 0.125]]},
    candidates=["cat", "dog"], tag="swap", match_scores=[-1.0, 2.0],
)  # fmt: skip


@pytest.fixture
def tool():
    found = importlib.util.spec_from_file_location("row_table", TOOL)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_docs_have_the_columns_of_today(tool):
    page = tool.PAGE.read_text("utf-8")
    assert tool.with_table(page) == page, "run python tools/row_table.py"
    assert all(f"| `{name}` |" in page for name in SCHEMA.names)


@pytest.mark.parametrize("kind", [ResultRow, spec.RunSpec])
def test_every_field_has_a_sentence_under_it(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    told = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            told[field.target.id] = text.value.value
    assert list(told) == [field.name for field in fields(kind)]
    assert all(len(sentence.split()) >= 2 and sentence.endswith(".") for sentence in told.values())


def test_rows_survive_the_table():
    failed = ResultRow("b", truth="dog", status="failed", reason="broken")
    table = rows_to_table([FULL, failed])
    assert table.schema == SCHEMA
    assert table_to_rows(table) == [FULL, failed]
    assert table_to_rows(table.select(["id", "tag"])) == [ResultRow("a", tag="swap"), ResultRow("b")]


def test_error_tables_are_stored_in_single_precision_and_not_in_summaries():
    single = {field.name for field in SCHEMA if "float" in str(field.type) and "double" not in str(field.type)}
    assert single == {"errors", "extra_errors"}
    assert set(SCHEMA.names) - set(SUMMARY_COLUMNS) == {"errors", "extra_errors", "timesteps"}
    assert SCHEMA.field("posterior").type == pa.list_(pa.float64())
    assert set(RESCORED_COLUMNS) == {"prediction", "posterior", "confidence", "match_scores"}


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [("cat", "cat", True), ("cat", "dog", False), ("cat", None, False), (None, None, False), (None, "cat", False)],
)
def test_correct_needs_a_truth_and_a_prediction(truth, prediction, expected):
    assert ResultRow("a", truth=truth, prediction=prediction).is_correct is expected


def test_scores():
    assert (FULL.score, ResultRow("a", status="failed").score) == (0.75, 0.0)
    assert (FULL.done, ResultRow("a", status="failed").done) == (True, False)
