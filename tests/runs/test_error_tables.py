import json
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from run_files import SPEC, row

from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.error_tables import ROWS_PER_GROUP, read_tables, table_writer
from diffusion_classifier.runs.row import ResultRow
from diffusion_classifier.runs.store import open_run
from diffusion_classifier.search.classification import decide
from diffusion_classifier.search.jobs import Cost, ScoredImage

NAMES = ("cat", "dog", "owl")
SETTINGS = {"loss": "l2", "num_dimensions": 48, "strategy": "fixed:4", "prior": None}


def result(name="a.png", errors=None, failure=None):
    errors = torch.rand(3, 4, generator=torch.Generator().manual_seed(len(name))) if errors is None else errors
    scored = ScoredImage(
        name, errors, torch.ones(3).bool(), torch.tensor([500, 250, 750, 125]), Cost(12, 12.0, 0.1), failure
    )
    return decide(scored, NAMES, num_dimensions=48)


def write(file, results):
    with table_writer(file, NAMES, SETTINGS) as add:
        for r, truth in results:
            add(r, truth)


def test_a_folder_is_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match="is a folder"), table_writer(tmp_path, NAMES, SETTINGS):
        pass


def test_what_was_written_is_read(tmp_path):
    pruned = torch.rand(3, 4)
    pruned[1, 2:] = torch.nan
    pairs = [(result("a.png"), "cat"), (result("bb.png", pruned), None), (result("naïve [x].png"), "owl")]
    write(tmp_path / "t.parquet", pairs)
    tables = read_tables(tmp_path / "t.parquet")
    assert tables.class_names == NAMES
    assert tables.settings == SETTINGS
    assert tables.images == ("a.png", "bb.png", "naïve [x].png")
    assert tables.truth == ("cat", None, "owl")
    for (r, _), errors, t in zip(pairs, tables.errors, tables.t, strict=True):
        torch.testing.assert_close(errors, r.errors, rtol=0, atol=0, equal_nan=True)
        assert t.tolist() == [500, 250, 750, 125]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
    with pytest.raises(InputError, match=r"full tables are needed.*fixed:4"):
        tables.complete()


def test_full_tables_as_one_tensor(tmp_path):
    write(tmp_path / "t.parquet", [(result("a"), None), (result("bb"), None)])
    whole = read_tables(tmp_path / "t.parquet").complete()
    assert torch.equal(whole, torch.stack([result("a").errors, result("bb").errors]))


def test_more_rows_than_a_group(tmp_path):
    names = [str(i) for i in range(2 * ROWS_PER_GROUP + 3)]
    write(tmp_path / "t.parquet", ((result(name), None) for name in names))
    assert read_tables(tmp_path / "t.parquet").images == tuple(names)


def test_failed_images_are_left_out(tmp_path):
    write(tmp_path / "t.parquet", [(result("a"), None), (result("b", torch.empty(3, 0), "broken"), None)])
    assert read_tables(tmp_path / "t.parquet").images == ("a",)


def test_what_came_is_kept_when_the_work_is_broken_off(tmp_path):
    def interrupted():
        yield result("a"), "dog"
        assert not (tmp_path / "t.parquet").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "t.parquet", interrupted())
    assert read_tables(tmp_path / "t.parquet").images == ("a",)


def test_nothing_does_not_replace_what_is_there(tmp_path):
    def interrupted():
        raise KeyboardInterrupt
        yield

    write(tmp_path / "t.parquet", [(result("a"), None)])
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "t.parquet", interrupted())
    assert read_tables(tmp_path / "t.parquet").images == ("a",)
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


def test_file_names_of_other_bytes(tmp_path):
    write(tmp_path / "t.parquet", [(result(os.fsdecode(b"\xe9.png")), None)])
    assert read_tables(tmp_path / "t.parquet").images == (r"\udce9.png",)


def test_version_2_is_read(tmp_path):
    """It has the column `label` in place of `prediction`, and calls the default weights the usual ones."""
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("image", "truth", "label")),
            ("errors", pa.list_(pa.list_(pa.float32()))),
            ("t", pa.list_(pa.float64())),
        ]
    )
    row = {
        "image": "a.png",
        "truth": "cat",
        "label": "dog",
        "errors": [[1.0, 2.0], [0.5, 1.5], [3.0, 3.0]],
        "t": [500.0, 250.0],
    }
    about = {"version": 2, "class_names": NAMES, "settings": SETTINGS | {"usual_weights": [1.0, 2.0]}}
    table = pa.Table.from_pylist([row], schema.with_metadata({"diffusion_classifier": json.dumps(about)}))
    pq.write_table(table, tmp_path / "t.parquet")
    tables = read_tables(tmp_path / "t.parquet")
    assert (tables.images, tables.truth) == (("a.png",), ("cat",))
    assert tables.errors[0].tolist() == row["errors"]
    assert tables.settings == SETTINGS | {"default_weights": [1.0, 2.0]}


def test_columns_say_truth_and_prediction(tmp_path):
    write(tmp_path / "t.parquet", [(result("a"), "cat")])
    (row,) = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert (row["truth"], row["prediction"]) == ("cat", result("a").label)


class TestBadFiles:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(InputError, match=r"t.parquet cannot be read as error tables"):
            read_tables(tmp_path / "t.parquet")

    def test_not_parquet(self, tmp_path):
        (tmp_path / "t.parquet").write_text("image,truth\n")
        with pytest.raises(InputError, match="cannot be read as error tables"):
            read_tables(tmp_path / "t.parquet")

    def test_another_kind_of_parquet(self, tmp_path):
        pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
        with pytest.raises(InputError, match="cannot be read as error tables"):
            read_tables(tmp_path / "t.parquet")

    def test_of_another_version(self, tmp_path, monkeypatch):
        monkeypatch.setattr("diffusion_classifier.runs.error_tables.VERSION", 9)
        write(tmp_path / "t.parquet", [(result(), None)])
        monkeypatch.undo()
        with pytest.raises(InputError, match="of version 9; this is for version 3"):
            read_tables(tmp_path / "t.parquet")

    def test_no_images(self, tmp_path):
        write(tmp_path / "t.parquet", [])
        with pytest.raises(InputError, match="holds no images"):
            read_tables(tmp_path / "t.parquet")

    def test_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            write(tmp_path / "no" / "t.parquet", [])


def test_the_error_tables_of_a_run(tmp_path):
    """In an order that does not depend on which image was done first, and without those that failed."""
    spec = replace(SPEC, num_images=4, store_errors=True)
    with open_run(tmp_path / "run", spec) as run:
        for i in (10, 9, 2):
            run.write(row(i))
        run.write(ResultRow("image 3", truth="cat", status="failed", reason="broken"))
    tables = read_tables(tmp_path / "run")
    assert tables.images == ("image 2", "image 9", "image 10")
    assert (tables.class_names, tables.truth) == (("cat", "dog"), ("cat",) * 3)
    assert tables.settings["strategy"] == "fixed:4"
    for i, errors, t in zip((2, 9, 10), tables.errors, tables.t, strict=True):
        assert errors.tolist() == row(i).errors
        assert t.tolist() == pytest.approx(row(i).timesteps)
    assert tables.complete().shape == (3, 2, 4)


@pytest.mark.parametrize(("store", "message"), [(False, "holds no errors"), (True, "holds no images")])
def test_runs_without_tables(tmp_path, store, message):
    with open_run(tmp_path / "run", replace(SPEC, store_errors=store)):
        pass
    with pytest.raises(InputError, match=message):
        read_tables(tmp_path / "run")
