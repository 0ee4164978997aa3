import json
import multiprocessing
import os
import resource
from dataclasses import fields, replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import SPEC, row, write

from diffusion_classifier.errors import InputError
from diffusion_classifier.files import write_durably
from diffusion_classifier.runs import store
from diffusion_classifier.runs.row import table_to_rows
from diffusion_classifier.runs.spec import RunSpec, read_spec
from diffusion_classifier.runs.store import Part, open_run, read_rows


def stored(folder):
    return table_to_rows(read_rows(folder))


def ids(folder):
    return read_rows(folder, ["id"])["id"].to_pylist()


def killed(folder, rows, part=None):
    """A process that writes these rows and ends at once, as if killed: nothing is closed."""

    def work():
        with open_run(folder, SPEC, part) as run:
            for i in rows:
                run.write(row(i))
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 9


def test_what_was_written_is_read(tmp_path):
    write(tmp_path / "run", range(3))
    assert stored(tmp_path / "run") == [row(i) for i in range(3)]
    assert read_spec(tmp_path / "run") == SPEC
    (shard,) = (tmp_path / "run" / "shards").iterdir()
    assert shard.suffix == ".parquet"


def test_a_full_shard_is_sealed_and_a_large_one(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(store, "SYNC_EVERY", 2)
    with open_run(tmp_path / "run", SPEC) as run:
        for i in range(10):
            run.write(row(i))
            assert ids(tmp_path / "run") == [f"image {j}" for j in range(i + 1)]  # also while it is at work
        assert sorted(p.suffix for p in (tmp_path / "run" / "shards").iterdir()) == [".arrows", ".parquet", ".parquet"]
        monkeypatch.setattr(store, "BYTES_PER_SHARD", 100)
        run.write(row(10))
        assert [p.suffix for p in (tmp_path / "run" / "shards").iterdir()] == [".parquet"] * 3
    assert [len(pq.read_table(p)) for p in sorted((tmp_path / "run" / "shards").iterdir())] == [4, 4, 3]


def test_nothing_is_lost_when_the_process_is_killed(tmp_path):
    killed(tmp_path / "run", range(5))
    assert ids(tmp_path / "run") == [f"image {i}" for i in range(5)]
    killed(tmp_path / "run", range(5, 7))
    run = write(tmp_path / "run", range(7, 9))
    assert run.done == {f"image {i}" for i in range(9)}
    assert stored(tmp_path / "run") == [row(i) for i in range(9)]
    assert {p.suffix for p in (tmp_path / "run" / "shards").iterdir()} == {".parquet"}


def test_killed_between_a_shard_and_the_end_of_its_stream(tmp_path):
    """Both files are there, with the same rows."""
    killed(tmp_path / "run", range(3))
    (stream,) = (tmp_path / "run" / "shards").glob("*.arrows")
    content = stream.read_bytes()
    write(tmp_path / "run", [])
    stream.write_bytes(content)
    assert ids(tmp_path / "run") == [f"image {i}" for i in range(3)]
    write(tmp_path / "run", [3])
    assert ids(tmp_path / "run") == [f"image {i}" for i in range(4)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Name and content of what a process leaves that was killed after four rows."""
    killed(tmp_path_factory.mktemp("killed") / "run", range(4))
    (path,) = tmp_path_factory.getbasetemp().glob("killed0/run/shards/*.arrows")
    return path.name, path.read_bytes()


@given(share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_stream_that_was_cut_anywhere_holds_its_whole_rows(stream, tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("run") / "run"
    write(folder, [])
    name, content = stream
    (folder / "shards" / name).write_bytes(content[: int(share * len(content))])
    found = stored(folder)
    assert found == [row(i) for i in range(len(found))]
    assert len(found) == 4 or share < 1
    write(folder, range(len(found), 5))
    assert stored(folder) == [row(i) for i in range(5)]


def test_a_full_disk_keeps_what_is_done(tmp_path):
    """By a real limit of the size of files, which cuts a row in two as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    write(tmp_path / "run", [0])
    with open_run(tmp_path / "run", SPEC) as run:
        run.write(row(1))
        size = next((tmp_path / "run" / "shards").glob("*.arrows")).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300, limits[1]))
        try:
            with pytest.raises(InputError, match=r"cannot be written to .*; 2 images are done and kept: make room"):
                run.write(row(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert ids(tmp_path / "run") == ["image 0", "image 1"]
        run.write(row(2))  # there is room again
    write(tmp_path / "run", [3])
    assert stored(tmp_path / "run") == [row(i) for i in range(4)]


def test_a_shard_that_cannot_be_read_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "ROWS_PER_SHARD", 2)
    write(tmp_path / "run", range(4))
    broken = sorted((tmp_path / "run" / "shards").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(InputError, match=f"{broken.name} cannot be read .* start the run again"):
        read_rows(tmp_path / "run")
    with open_run(tmp_path / "run", SPEC) as run:
        assert run.done == {"image 2", "image 3"}
        assert broken.with_suffix(".corrupt").name in run.notes[0]
        for i in range(2):
            run.write(row(i))
    assert sorted(ids(tmp_path / "run")) == [f"image {i}" for i in range(4)]


def test_a_second_process_is_refused(tmp_path):
    with open_run(tmp_path / "run", SPEC), pytest.raises(InputError, match=r"another process is at work in .*1-of-1"):
        write(tmp_path / "run", [1])
    write(tmp_path / "run", [1])


def test_parts_share_a_run(tmp_path):
    first, second = Part.parse("1/2"), Part.parse("2/2")
    with open_run(tmp_path / "run", SPEC, first) as one, open_run(tmp_path / "run", SPEC, second) as other:
        for i in range(4):
            (one, other)[i % 2].write(row(i))
        for part in (None, Part.parse("1/3"), first):
            with pytest.raises(InputError, match="another process is at work"):
                write(tmp_path / "run", [], part=part)
        assert sorted(ids(tmp_path / "run")) == [f"image {i}" for i in range(4)]
    killed(tmp_path / "run", [4, 6], second)
    run = write(tmp_path / "run", [], part=first)
    assert run.done == {f"image {i}" for i in (0, 1, 2, 3, 4, 6)}
    run = write(tmp_path / "run", [5])  # a process alone goes on with what all left
    assert sorted(ids(tmp_path / "run")) == [f"image {i}" for i in range(7)]
    assert {p.suffix for p in (tmp_path / "run" / "shards").iterdir()} == {".parquet"}


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1-2", "a/b", "-1/2"])
def test_parts_that_are_none(text):
    with pytest.raises(InputError, match="1/4, the first of four"):
        Part.parse(text)


def test_every_field_is_declared_and_decides_or_does_not(tmp_path):
    """Whoever adds a field says which; and each one of the identity refuses, none of the others does."""
    assert all("identity" in f.metadata for f in fields(RunSpec))
    write(tmp_path / "run", [0])
    for f in fields(RunSpec):
        other = {"class_names": ("cat", "cow"), "num_images": 8, "temperature": 2.0, "weights": None}.get(
            f.name, "else"
        )
        changed = replace(SPEC, **{f.name: other})
        if f.metadata["identity"]:
            with pytest.raises(InputError, match=f"run of something else .*{f.name} .* there, .* now"):
                write(tmp_path / "run", [1], changed)
        else:
            write(tmp_path / "run", [], changed)
    assert read_spec(tmp_path / "run") == SPEC


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not the folder of a run: it has no spec.json"),
        ("{", "cannot be read as the spec of a run"),
        ("[]", "cannot be read as the spec of a run"),
        ('{"version": 99}', "of version 99; this is for version 2"),
        ('{"version": 1}', "cannot be read as the spec of a run"),
        ('{"version": 2}', "cannot be read as the spec of a run"),
    ],
)
def test_folders_that_are_no_runs(tmp_path, content, message):
    if content is not None:
        (tmp_path / "spec.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path)


def test_killed_as_it_began(tmp_path):
    (tmp_path / "run" / "shards").mkdir(parents=True)
    for name in ("1-of-1.lock", "spec.json.17.tmp"):
        (tmp_path / "run" / name).touch()
    write(tmp_path / "run", [0])
    assert ids(tmp_path / "run") == ["image 0"]


def _begin(folder, part, together):
    together.wait()
    write(folder, [part], part=Part(part, 2))


def test_parts_begin_at_the_same_moment(tmp_path):
    """Each writes what the run is."""
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        together = context.Barrier(2)
        workers = [context.Process(target=_begin, args=(tmp_path / f"{attempt}", k, together)) for k in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert ids(tmp_path / f"{attempt}") == ["image 0", "image 1"]


def test_a_file_is_written_while_another_process_writes_it(tmp_path, monkeypatch):
    path, pids = tmp_path / "spec.json", iter((1, 2))
    fsync = [lambda _: write_durably(path, "theirs")]
    monkeypatch.setattr(os, "getpid", lambda: next(pids))
    monkeypatch.setattr(os, "fsync", lambda descriptor: fsync.pop()(descriptor) if fsync else None)
    write_durably(path, "ours")
    assert path.read_text() == "ours"
    assert [p.name for p in tmp_path.iterdir()] == ["spec.json"]


def test_nothing_of_others_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(InputError, match="exists and is not the folder of a run"):
            write(tmp_path / name, [])
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert len(list((tmp_path / "full").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_no_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="cannot be used as the folder of a run"):
        write(tmp_path / "locked" / "run", [])


def test_a_lock_that_a_killed_process_held_is_free(tmp_path):
    killed(tmp_path / "run", [0])
    write(tmp_path / "run", [1])


def test_the_spec_is_for_people_too(tmp_path):
    write(tmp_path / "run", [])
    written = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert written["class_names"] == ["cat", "dog"]
    assert written["strategy"] == "fixed:4"
