import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from commands import choices, error

from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import _read_stream, read_rows


@pytest.fixture
def evaluate(call, model, photos, tmp_path):
    """Evaluates the photographs quickly: code, what is printed, standard error."""

    def evaluate(*arguments, task=photos, out=tmp_path / "run"):
        options = ("--model", model, "--strategy", "fixed:2", "--batch-size", 8)
        return call("evaluate", task, "--out", out, *options, *arguments)

    return evaluate


class TestEvaluate:
    def test_a_folder_from_nothing_to_a_summary(self, evaluate, tmp_path):
        code, out, err = evaluate("--store-errors")
        assert (code, err) == (0, "")
        assert "30 of 30" in out
        rows = read_rows(tmp_path / "run").to_pylist()
        assert {row["id"] for row in rows} == {f"{n}/{i}.png" for n in ("dark", "grey", "light") for i in range(10)}
        assert all(row["id"].startswith(row["truth"]) for row in rows)
        assert len(rows[0]["errors"]) == 3
        accuracy = sum(row["prediction"] == row["truth"] for row in rows) / 30
        assert f"{accuracy:.1%} (" in out
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["accuracy"][0] == pytest.approx(accuracy)

    def test_it_goes_on_and_says_so(self, evaluate, tmp_path):
        evaluate()
        (shard,) = (tmp_path / "run" / "shards").iterdir()
        shard.write_bytes(b"broken")
        code, out, err = evaluate()
        assert code == 0
        assert "cannot be read" in err
        assert "30 of 30" in out
        code, _, err = evaluate()
        assert (code, err) == (0, "resuming: 30 of 30 images are done\n")

    def test_a_limit_a_subset_and_a_part(self, evaluate, tmp_path):
        evaluate("--limit", 6, "--part", "2/2", out=tmp_path / "a")
        assert sorted(read_rows(tmp_path / "a", ["id"])["id"].to_pylist()) == [
            "dark/5.png",
            "grey/5.png",
            "light/5.png",
        ]
        (tmp_path / "ids.txt").write_text("grey/1.png\n\ndark/7.png\n")
        evaluate("--subset", tmp_path / "ids.txt", out=tmp_path / "b")
        assert sorted(read_rows(tmp_path / "b", ["id"])["id"].to_pylist()) == ["dark/7.png", "grey/1.png"]

    def test_an_image_that_fails(self, evaluate, photos, tmp_path):
        for name in ("dark", "grey", "light"):
            (tmp_path / "d" / name).mkdir(parents=True)
            (tmp_path / "d" / name / "0.png").write_bytes((photos / name / "0.png").read_bytes())
        (tmp_path / "d" / "grey" / "1.png").write_bytes(b"nothing")
        code, out, err = evaluate(task=tmp_path / "d")
        assert code == 1
        assert "3 of 4, 1 failed" in out
        assert f"{tmp_path / 'run'}: failed: grey/1.png: is no image of a known format" in err
        for i in range(2, 9):
            (tmp_path / "d" / "grey" / f"{i}.png").touch()
        code, _, err = evaluate(task=tmp_path / "d", out=tmp_path / "more")
        assert err.count("failed: grey/") == 5
        assert "failed: 3 more; their error records give the reasons" in err

    def test_what_was_left_out_is_said_and_kept(self, evaluate, photos, tmp_path):
        folder = shutil.copytree(photos, tmp_path / "d" / "test")
        (folder / "dark" / "notes.txt").write_text("none")
        (folder.parent / "annotations").mkdir()
        code, _, err = evaluate("--limit", 3, task=tmp_path / "d")
        assert (code, err.splitlines()) == (0, [
            "1 folder holds no images and was left out: annotations",
            "1 file is no image and was left out: test/dark/notes.txt",
        ])  # fmt: skip
        assert read_spec(tmp_path / "run").notes == tuple(err.splitlines())

    def test_images_under_shift(self, evaluate, tmp_path):
        evaluate("--store-errors", out=tmp_path / "plain")
        code, out, _ = evaluate("--store-errors", "--shift", "gaussian-noise:3")
        assert (code, "30 of 30" in out) == (0, True)
        assert read_spec(tmp_path / "run").shift == "gaussian-noise:3"
        plain, changed = (read_rows(tmp_path / name, ["id", "errors"]).to_pylist() for name in ("plain", "run"))
        assert plain != changed
        code, _, err = evaluate("--store-errors", "--shift", "gaussian-noise:4")
        assert code == 2
        assert 'shift "gaussian-noise:3" there, "gaussian-noise:4" now' in error(err)

    def test_the_papers_preset(self, call, tmp_path):
        options = ("--limit", 2, "--batch-size", 64, "--dtype", "float32")
        code, _, err = call("evaluate", "fashion-sample", "--out", tmp_path / "run", "--preset", "paper", *options)
        assert (code, error(err)) == (2, "there is no preset 'paper' for fashion-sample; known are: none")

    def test_the_bundled_task(self, call, tmp_path):
        options = ("--limit", 3, "--batch-size", 32, "--strategy", "fixed:2")
        code, out, _ = call("evaluate", "fashion-sample", "--out", tmp_path / "run", *options)
        assert code == 0
        assert "3 of 3" in out
        spec = read_spec(tmp_path / "run")
        assert (spec.task, spec.templates, spec.num_images, len(spec.class_names)) == ("fashion-sample", None, 3, 10)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--limit", 31), "the limit must be between 1 and the 30 images"),
            (("--part", "3/2"), "a part of a run is written as 1/4"),
            (("--class-names", "a,b"), "2 class names were given for the 3 classes"),
            (
                ("--class-names", "a,b,c"),
                "has the class 'a', which the model does not know: its own are dark, grey, light",
            ),
            (("--keep", 2), "--keep says how long a --shortlist is"),
            (("--split", "dev"), "split 'dev'"),
            (("--shift", "fog:1"), "a corruption is a name and a severity from 1 to 5, as jpeg:3, of gaussian-noise"),
            (("--label-column", "kind"), "no column 'kind'; it has image, label"),
            (("--seed", 1), "holds a run of something else (seed 0 there, 1 now): choose another --out"),
        ],
    )
    def test_mistakes(self, evaluate, tmp_path, arguments, message):
        if arguments[0] == "--seed":
            evaluate()
        code, out, err = evaluate(*arguments)
        assert (code, out) == (2, "")
        assert message in error(err)
        assert arguments[0] == "--seed" or not (tmp_path / "run").exists()

    def test_an_unknown_task(self, call, tmp_path):
        code, _, err = call("evaluate", "pet", "--out", tmp_path / "run")
        assert (code, error(err)) == (2, "there is no task 'pet', nor a folder or file of that name; tasks are pets")

    def test_a_folder_that_is_no_run(self, evaluate, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "mine.txt").touch()
        code, _, err = evaluate()
        assert code == 2
        assert "exists and is not the folder of a run" in error(err)

    @pytest.mark.slow
    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_asked_to_end_it_seals_what_is_done(self, model, photos, tmp_path, signum):
        # A shell that was started in the background has its children ignore the interrupt.
        program = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from diffusion_classifier.cli import main; main()"
        )
        command = [
            sys.executable, "-c", program, "evaluate", photos, "--out", tmp_path / "run", "--model", model,
            "--strategy", "fixed:400", "--batch-size", "4",
        ]  # fmt: skip
        environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as p:
            end = time.monotonic() + 300
            while p.poll() is None and time.monotonic() < end:
                if any(len(_read_stream(shard)) for shard in tmp_path.glob("run/shards/*.arrows")):
                    break  # a file that was just begun would be sealed by whoever goes on
                time.sleep(0.05)
            p.send_signal(signum)
            _, err = p.communicate(timeout=300)
        assert p.returncode not in (0, 2), err
        assert "Traceback" not in err
        (shard,) = (tmp_path / "run" / "shards").iterdir()
        assert shard.suffix == ".parquet"
        assert 1 <= len(read_rows(tmp_path / "run")) < 30


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_by_workers_of_ray(evaluate, tmp_path, monkeypatch, photos):
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(photos.parent)  # names that are relative to where the command was called
    try:
        code, out, _ = evaluate("--ray", "local", "--workers", 2, "--chunk", 7, task=photos.name, out=tmp_path / "r")
    finally:
        ray.shutdown()
    assert code == 0
    assert "30 of 30" in out
    evaluate(out=tmp_path / "one")
    answers = [{row["id"]: row["posterior"] for row in read_rows(tmp_path / name).to_pylist()} for name in ("r", "one")]
    assert answers[0] == answers[1]
    code, _, err = evaluate("--ray", "local", "--part", "1/2")
    assert (code, error(err)) == (2, "--ray shares the work among its workers: leave out --part")
    code, _, err = evaluate("--ray", "127.0.0.1:1", out=tmp_path / "x")
    assert code == 2
    assert "Ray cannot be reached at 127.0.0.1:1" in err


class TestTasks:
    def test_list(self, call):
        code, out, err = call("tasks")
        assert (code, err) == (0, "")
        for name in ("pets", "imagenet-a", "fashion-sample", "cifar100"):
            assert re.search(rf"│ {name} ", out)

    def test_show(self, call):
        code, out, _ = call("tasks", "show", "pets")
        assert code == 0
        for words in ("a photo of a {}, a type of pet.", "staged:25,250/5,1", "Parkhi", "never on the data", "87.3"):
            assert words in out

    def test_show_an_unknown_one(self, call):
        code, _, err = call("tasks", "show", "dogs")
        assert code == 2
        assert "there is no task 'dogs'" in error(err)


class TestSummarize:
    def test_two_runs(self, evaluate, call, tmp_path):
        evaluate(out=tmp_path / "a")
        evaluate("--seed", 1, out=tmp_path / "b")
        code, out, err = call("summarize", tmp_path / "a", tmp_path / "b")
        assert (code, err) == (0, "")
        assert "McNemar" in out
        code, out, _ = call("summarize", tmp_path / "a", tmp_path / "b", "--format", "json")
        told = json.loads(out)
        assert [run["num_done"] for run in told["runs"]] == [30, 30]
        assert told["comparisons"][0]["num_images"] == 30
        code, out, _ = call("summarize", tmp_path / "a", "--format", "markdown")
        lines = out.splitlines()
        assert {line.count("|") for line in lines} == {3}
        assert lines[1] == "| --- | --- |"

    def test_mistakes(self, call, tmp_path):
        code, _, err = call("summarize", tmp_path)
        assert code == 2
        assert "is not the folder of a run" in error(err)
        code, _, err = call("summarize", tmp_path, "--format", "xml")
        assert (code, choices(err)) == (2, ("--format", ["table", "json", "markdown"]))
