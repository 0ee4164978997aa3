import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import get_args

import matplotlib.image
import numpy as np
import pytest
import torch
from commands import TRAIN, choices, error
from PIL import Image
from rich.console import Console
from torch._dynamo.exc import TorchDynamoException

from diffusion_classifier import DiffusionClassifier, cli
from diffusion_classifier.denoisers import known_models
from diffusion_classifier.denoisers.devices import DTYPES
from diffusion_classifier.diffusion.losses import BOUNDS, LOSSES
from diffusion_classifier.runs.error_tables import read_tables
from diffusion_classifier.search.candidates import Average
from diffusion_classifier.training.denoising import BETA_SCHEDULES, OBJECTIVES, TRUNKS, WEIGHTINGS
from diffusion_classifier.training.loop import OPTIMIZERS
from diffusion_classifier.training.supervised import ARCHITECTURES, AUGMENTATIONS

COMMAND = [sys.executable, "-c", "from diffusion_classifier.cli import main; main()"]
KEYS = {"image", "label", "score", "confidence", "scores", "num_evaluations", "cost", "seconds"}


@pytest.fixture(scope="session")
def tables(model, photos, tmp_path_factory):
    """Full error tables of all photographs, made by the command itself."""
    out = tmp_path_factory.mktemp("tables") / "tables.parquet"
    arguments = ["classify", str(photos), "--model", str(model), "--draws", "8", "--save-errors", str(out)]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", ["x", *arguments])
        with pytest.raises(SystemExit) as e:
            cli.main()
    assert e.value.code == 0
    return out


def on_terminal(monkeypatch, name):
    """Standard output or error of the commands as if it were a terminal."""
    console = Console(stderr=name == "stderr", force_terminal=True)
    for module in (cli, cli.options, cli.training_options, cli.classify):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, console)


@pytest.fixture
def classify(call, model):
    """Classifies quickly; code, rows and standard error."""

    def classify(*arguments, draws=("--draws", 2)):
        code, out, err = call("classify", *arguments, "--model", model, *draws, "--format", "jsonl")
        return code, [json.loads(line) for line in out.splitlines()], err

    return classify


class TestRoot:
    def test_the_installed_command_is_this_one(self):
        (command,) = entry_points(group="console_scripts", name="diffusion-classifier")
        assert command.load() is cli.main

    def test_version(self, call):
        code, out, err = call("--version")
        assert (code, err) == (0, "")
        assert re.fullmatch(r"diffusion-classifier \d+\.\d+\.\d+\n", out)

    def test_help_does_not_wait_for_torch(self):
        program = """if True:
            import sys
            from diffusion_classifier.cli import main
            for arguments in (["--version"], ["--help"], ["-h"], ["train", "--help"], ["classify", "--help"]):
                sys.argv = ["diffusion-classifier", *arguments]
                try:
                    main()
                except SystemExit as e:
                    assert e.code == 0, arguments
            slow = {"torch", "numpy", "diffusers", "transformers", "datasets", "pyarrow", "PIL"} & set(sys.modules)
            assert not slow, slow
            """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert "--labels-file" in done.stdout

    @pytest.mark.slow
    def test_no_import_speaks_of_what_does_not_matter_here(self):
        program = """if True:
            import importlib, pkgutil, diffusion_classifier as package
            for module in pkgutil.walk_packages(package.__path__, "diffusion_classifier."):
                importlib.import_module(module.name)
            """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    @pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no device that is full")
    def test_a_full_disk_below_the_output(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([*COMMAND, "tasks"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (2, "error: the output cannot be written: No space left on device\n")

    def test_an_option_that_is_not_there(self, call):
        code, out, err = call("classify", "--nonsense")
        assert (code, out) == (2, "")
        assert "--nonsense" in err

    def test_models(self, call, model, monkeypatch):
        monkeypatch.setattr(known_models, "bundled_models", lambda: {"tiny [red]one[/red]": model})
        code, out, err = call("models")
        assert (code, err) == (0, "")
        assert re.search(r"tiny \[red\]one\[/red\] *│ class-unet *│ dark, grey, light", out)
        for name, *_ in known_models.KNOWN:
            assert name in out
        assert "StableDiffusionPipeline" in out

    def test_no_bundled_models(self, call, monkeypatch):
        monkeypatch.setattr(known_models, "bundled_models", dict)
        assert call("models")[0] == 0


class TestTrain:
    def test_reports_on_standard_error_line_by_line(self, call, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(cli.training_options, "LINE_EVERY", 2)
        out = tmp_path / "[red]m"
        arguments = ["train", photos, "--out", out, "--epochs", 2, "--checkpoint-every", 3, *TRAIN]
        code, printed, err = call(*arguments)
        assert (code, printed) == (0, "")
        lines = [line for line in err.splitlines() if line.startswith(("step", "saved", "27"))]
        patterns = [
            r"27 training and 3 validation images of 3 classes",
            r"step 2 of 7: loss \d\.\d{4}, \d+ images/s, (unknown time|\d+:\d\d:\d\d) left",
            r"step 3: training loss \d\.\d{4}, validation loss \d\.\d{4}, accuracy [01]\.\d{4}",
            r"step 4 of 7: .*",
            r"step 6 of 7: .*",
            r"step 6: training loss .*",
            r"step 7 of 7: .* 0:00:00 left",
            r"step 7: training loss .*",
            rf"saved to {re.escape(str(out))}",
        ]
        assert len(lines) == len(patterns), err
        for line, pattern in zip(lines, patterns, strict=True):
            assert re.fullmatch(pattern, line)
        assert "━" not in err

        code, _, err = call(*arguments)
        assert code == 0
        assert "step" not in err

    def test_few_images_are_passed_over_often(self, call, photos, tmp_path, monkeypatch):
        monkeypatch.setattr("diffusion_classifier.training.loop.NUM_STEPS", 40)
        code, _, err = call("train", photos, "--out", tmp_path / "m", *TRAIN)
        assert code == 0
        assert "step 40 of 40" in err

    def test_a_terminal_gets_a_bar(self, call, photos, tmp_path, monkeypatch):
        on_terminal(monkeypatch, "stderr")
        _, printed, err = call("train", photos, "--out", tmp_path / "m", "--epochs", 0.1, *TRAIN)
        assert printed == ""
        assert "━" in err
        assert "step 1 of" not in err

    def test_names_and_size(self, call, photos, tmp_path):
        options = ["--class-names", "x, y ,z", "--size", 4, "--validation", 5, "--epochs", 0.1, *TRAIN]
        code, _, err = call("train", photos, "--out", tmp_path / "m", *options)
        assert code == 0
        assert "25 training and 5 validation images" in err
        settings = json.loads((tmp_path / "m" / "diffusion_classifier.json").read_text())
        assert settings == {"class_names": ["x", "y", "z"], "patch_size": 1, "times": "even"}
        assert json.loads((tmp_path / "m" / "unet" / "config.json").read_text())["sample_size"] == 4

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--channels", "8,x"], r"--channels '8,x': whole numbers"),
            (["--learning-rate", "-1"], "learning_rate must be above 0; got -1.0"),
            (["--class-names", "a,b"], "2 class names were given for the 3 classes"),
            (["--channels", "8,8,8,8,8"], "images of 8 pixels"),
            (["--validation", "30"], "30 images cannot be held out of 30"),
            (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
            (["--split", "tset"], "split 'tset'"),
        ],
    )
    def test_mistakes(self, call, photos, tmp_path, options, message):
        code, out, err = call("train", photos, "--out", tmp_path / "m", *TRAIN, *options)
        assert (code, out) == (2, "")
        assert re.search(message, err.splitlines()[-1])
        assert err.splitlines()[-1].startswith("error: ")

    def test_another_learning_rate_for_a_run_under_way(self, call, photos, model):
        options = ["--epochs", "1", *TRAIN, "--learning-rate", "0.5"]
        code, _, err = call("train", photos, "--out", model, *options)
        assert code == 2
        assert "learning_rate 0.001 there, 0.5 now" in err

    def test_interrupted(self, call, photos, tmp_path, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("diffusion_classifier.training.class_model.validate", interrupt)
        code, out, _ = call("train", photos, "--out", tmp_path / "m", "--epochs", 0.1, *TRAIN)
        assert (code, out) == (130, "")


class TestOutput:
    def test_lines(self, classify, photos):
        code, rows, err = classify(photos / "dark", photos / "light" / "3.png")
        assert code == 0
        assert sorted(row["image"] for row in rows) == sorted(
            [*(str(photos / "dark" / f"{i}.png") for i in range(10)), str(photos / "light" / "3.png")]
        )
        for row in rows:
            assert row.keys() == KEYS
            assert row["scores"].keys() == {"dark", "grey", "light"}
            assert list(row["scores"].values()) == sorted(row["scores"].values(), reverse=True)
            assert next(iter(row["scores"].items())) == (row["label"], row["score"])
            assert sum(row["scores"].values()) == pytest.approx(1)
            assert row["num_evaluations"] == 6
        assert "classifying" in err

    def test_lines_are_what_the_library_answers(self, classify, photos, model):
        path = photos / "dark" / "0.png"
        _, (row,), _ = classify(path, "--dtype", "float32", "--seed", 5, "--loss", "l1", "--timesteps", "200,300")
        classifier = DiffusionClassifier.from_pretrained(model, dtype="float32")
        (result,) = classifier.classify([path], strategy="fixed:2", seed=5, loss="l1", timesteps="200,300")
        assert row["scores"] == pytest.approx(result.scores, rel=1e-4)

    def test_notes(self, classify, tmp_path):
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
        _, (row,), _ = classify(tmp_path / "clear.png")
        assert row.keys() - KEYS == {"notes"}
        assert row["notes"] == ["transparent parts on white"]

    def test_csv(self, call, model, photos):
        code, out, _ = call("classify", photos / "dark", "--model", model, "--draws", 2, "--format", "csv")
        assert code == 0
        rows = list(csv.DictReader(io.StringIO(out)))
        assert len(rows) == 10
        for row in rows:
            scores = json.loads(row["scores"])
            assert row["label"] == max(scores, key=scores.get)
            assert float(row["score"]) == scores[row["label"]]

    def test_table_is_the_default(self, call, model, photos):
        code, out, err = call("classify", photos / "dark" / "0.png", "--model", model, "--draws", 2)
        assert code == 0
        (line,) = [line for line in out.splitlines() if line.startswith("│")]
        image, label, score, then, evaluations, _ = [cell.strip() for cell in line.strip("│").split("│")]
        assert image == str(photos / "dark" / "0.png")
        assert {label, *re.findall("dark|grey|light", then)} == {"dark", "grey", "light"}
        assert re.fullmatch(r"[01]\.\d{3}", score)
        assert evaluations == "6"
        assert "classifying" in err

    def test_top(self, classify, photos):
        _, (row,), _ = classify(photos / "dark" / "0.png", "--top", 1)
        assert list(row["scores"]) == [row["label"]]

    @pytest.mark.parametrize("output", ["jsonl", "csv"])
    def test_a_progress_bar_does_not_swallow_lines(self, call, model, photos, monkeypatch, output):
        """As in `classify … > file`, where standard error is a terminal and standard output is not."""
        on_terminal(monkeypatch, "stderr")
        code, out, err = call("classify", photos / "dark", "--model", model, "--draws", 2, "--format", output)
        assert code == 0
        assert out.count("dark/") == 10
        assert "━" in err
        assert "dark/" not in err

    def test_the_bar_gives_way_to_lines_on_the_same_terminal(self, call, model, photos, monkeypatch):
        on_terminal(monkeypatch, "stderr")
        on_terminal(monkeypatch, "stdout")
        _, out, err = call("classify", photos / "dark", "--model", model, "--draws", 2, "--format", "jsonl")
        assert out.count("\n") == 10
        assert err == ""

    def test_names_that_look_like_markup(self, call, classify, model, tmp_path, photos):
        path = tmp_path / "[red]x[red].png"
        shutil.copy(photos / "dark" / "0.png", path)
        (tmp_path / "[bold]broken.png").write_bytes(b"nothing")
        _, out, _ = call("classify", tmp_path, "--model", model, "--draws", 2)
        assert "[red]x[red].png" in out
        assert "[bold]broken.png" in out
        assert str(path) in [row["image"] for row in classify(tmp_path)[1]]
        code, _, err = call("classify", tmp_path / "[/blue]missing.png", "--model", model)
        assert code == 2
        assert "[/blue]missing.png" in error(err)

    def test_names_that_are_no_text(self, classify, photos, tmp_path):
        name = os.fsdecode(b"caf\xe9.png")
        try:
            shutil.copy(photos / "dark" / "0.png", tmp_path / name)
        except OSError:
            pytest.skip("this file system has no such names")
        code, (row,), _ = classify(tmp_path)
        assert code == 0
        assert row["image"] == str(tmp_path / name)


class TestMeaning:
    def test_the_same_picture_has_the_same_scores_under_any_name(self, classify, photos, tmp_path):
        shutil.copy(photos / "dark" / "0.png", tmp_path / "a.png")
        Image.open(photos / "dark" / "0.png").save(tmp_path / "b.bmp")
        _, rows, _ = classify(tmp_path, photos / "light")
        scores = {row["image"]: row["scores"] for row in rows}
        assert scores[str(tmp_path / "a.png")] == scores[str(tmp_path / "b.bmp")]

    def test_the_seed_is_that_of_the_noise(self, classify, photos):
        path = photos / "dark" / "0.png"
        scores = [classify(path, *seed)[1][0]["scores"] for seed in ([], ["--seed", 0], ["--seed", 1])]
        assert scores[0] == scores[1]
        assert scores[0] != scores[2]

    def test_labels(self, classify, photos, tmp_path):
        (tmp_path / "labels.txt").write_text("Light\n\n dark \n", "utf-8-sig")  # as Windows writes it
        path = photos / "dark" / "0.png"
        _, (one,), _ = classify(path, "--labels", "Light,dark")
        _, (two,), _ = classify(path, "--labels-file", tmp_path / "labels.txt")
        assert one["scores"].keys() == {"Light", "dark"}
        assert one["num_evaluations"] == 4
        assert two["scores"] == one["scores"]

    def test_strategy(self, call, model, photos):
        arguments = ["classify", photos / "dark" / "0.png", "--model", model, "--format", "jsonl", "--strategy"]
        _, out, _ = call(*arguments, "staged:2,5/2,1")
        assert json.loads(out)["num_evaluations"] == 3 * 2 + 2 * 3
        _, out, _ = call(*arguments, "fixed:5")
        assert json.loads(out)["num_evaluations"] == 15

    def test_temperature(self, classify, photos):
        _, (row,), _ = classify(photos / "dark" / "0.png", "--temperature", 1e9)
        assert list(row["scores"].values()) == pytest.approx([1 / 3] * 3, abs=1e-6)

    @pytest.mark.parametrize("size", [1, 5, "auto"])
    def test_batch_size(self, classify, photos, size):
        code, rows, _ = classify(photos / "dark", "--batch-size", size)
        assert code == 0
        assert len(rows) == 10


class TestFailures:
    def test_a_broken_file_among_good_ones(self, classify, photos, tmp_path):
        shutil.copytree(photos / "dark", tmp_path / "d")
        (tmp_path / "d" / "notes.txt").write_text("no image")
        code, rows, _ = classify(tmp_path / "d")
        assert code == 1
        assert len(rows) == 11
        (failed,) = [row for row in rows if "error" in row]
        assert failed.keys() == {"image", "error"}
        assert failed["image"] == str(tmp_path / "d" / "notes.txt")
        assert re.search("no image of a known format", failed["error"])

    def test_a_missing_path_among_good_ones(self, classify, photos):
        code, rows, _ = classify("nowhere.png", photos / "dark" / "0.png")
        assert code == 1
        assert rows[0] == {"image": "nowhere.png", "error": "there is no such file or folder"}
        assert "label" in rows[1]

    def test_all_broken(self, classify, tmp_path):
        (tmp_path / "a.png").write_bytes(b"\x89PNG")
        (tmp_path / "b.png").write_bytes(b"")
        code, rows, _ = classify(tmp_path)
        assert code == 2
        assert [row.keys() for row in rows] == [{"image", "error"}] * 2

    def test_missing_paths_alone(self, classify, tmp_path):
        code, rows, err = classify("nowhere.png", tmp_path)
        assert (code, rows) == (2, [])
        assert "nowhere.png: there is no such file" in error(err)
        assert f"{tmp_path}: the folder holds no files" in error(err)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--labels", "dark"], "at least two labels .* got 'dark'"),
            (["--labels", ""], "empty"),
            (["--labels", "dark,,light"], "label 2 of 3 is empty"),
            (["--labels", "dark,light,Dark"], "label 'Dark' is given twice"),
            (["--labels", "dark,ligth"], "'ligth'; did you mean light"),
            (["--labels", "dark,light", "--labels-file", "x"], "--labels or --labels-file, not both"),
            (["--labels-file", "nowhere.txt"], "nowhere.txt cannot be read .*No such file"),
            (["--labels-file", os.devnull], "at least two labels"),
            (["--template", "a photo of a {}."], "class-conditional, not text-to-image: it has no use for a template"),
            (["--strategy", "fixed:4", "--draws", "4"], "--strategy or --draws, not both"),
            (["--strategy", "staged:2,4/3,1"], "keeps 3 classes .* there are only 3"),
            (["--strategy", "quick"], "strategy 'quick' is not known"),
            (["--draws", "0"], "at least 1 draw is needed; got 0"),
            (["--timesteps", "late"], "timesteps 'late' are not known"),
            (["--temperature", "0"], "temperature must be above 0; got 0"),
            (["--device", "nonsense"], "device 'nonsense' cannot be used here"),
            (["--batch-size", "many"], "batch size must be a whole number from 1, or auto; got .?many"),
            (["--batch-size", "0"], "batch size .* got 0"),
            (["--batch-size", "-3"], "batch size .* got .?-3"),
            (["--batch-size", "2.5"], "batch size .* got .?2.5"),
            (["--model", "/nowhere/model"], "/nowhere/model"),
            (["--model", "nobody/nothing"], "nobody/nothing"),
            (["--model", os.path.dirname(__file__)], "model_index.json"),
        ],
    )
    def test_mistakes(self, call, model, photos, options, message):
        model = [] if "--model" in options else ["--model", model]
        code, out, err = call("classify", photos / "dark" / "0.png", *model, "--format", "csv", *options)
        assert (code, out) == (2, "")
        assert re.search(message, error(err))

    def test_a_time_that_the_model_does_not_have(self, call, model, photos):
        code, out, err = call("classify", photos, "--model", model, "--format", "csv", "--timesteps", "5000")
        assert (code, out) == (2, "")
        assert re.fullmatch("error: timesteps .* from 0 to 999; got .*5000.*", err.splitlines()[-1])

    @pytest.mark.parametrize("options", [["--top", "0"], ["--format", "xml"], ["--draws", "many"]])
    def test_mistakes_that_the_parser_finds(self, call, photos, options):
        code, out, err = call("classify", photos, *options)
        assert (code, out) == (2, "")
        assert options[0] in err

    @pytest.mark.parametrize(
        ("command", "option", "expected"),
        [
            ("classify", "--loss", [*LOSSES, *BOUNDS]),
            ("classify", "--dtype", ["auto", *DTYPES]),
            ("classify", "--average", get_args(Average)),
            ("train", "--objective", OBJECTIVES),
            ("train", "--beta-schedule", BETA_SCHEDULES),
            ("train", "--weighting", WEIGHTINGS),
            ("train", "--trunk", TRUNKS),
            ("train", "--optimizer", OPTIMIZERS),
            ("distill", "--architecture", ARCHITECTURES),
            ("distill", "--augment", AUGMENTATIONS),
            ("summarize", "--format", ["table", "json", "markdown"]),
        ],
    )
    def test_choices_are_those_of_the_library(self, call, photos, tmp_path, command, option, expected):
        out_folder = () if command in ("classify", "summarize") else ("--out", tmp_path / "x")
        code, out, err = call(command, photos, option, "nonsense", *out_folder)
        assert (code, out) == (2, "")
        assert choices(err) == (option, list(expected))

    @pytest.mark.parametrize(
        ("e", "message"),
        [
            (torch.OutOfMemoryError("out of memory"), "memory does not suffice (out of memory): try --dtype"),
            (
                TorchDynamoException("no compiler"),
                "torch.compile does not work here (no compiler): leave out --compile",
            ),
        ],
    )
    def test_what_the_machine_cannot_do(self, call, model, photos, monkeypatch, e, message):
        def fail(*_, **__):
            raise e

        monkeypatch.setattr(DiffusionClassifier, "stream", fail)
        code, out, err = call("classify", photos, "--model", model)
        assert (code, out) == (2, "")
        assert error(err).startswith(message)

    @pytest.mark.parametrize("output", ["table", "jsonl", "csv"])
    def test_interrupted(self, call, model, photos, monkeypatch, output):
        stream = DiffusionClassifier.stream

        def interrupted(*arguments, **options):
            yield from islice(stream(*arguments, **options), 3)
            raise KeyboardInterrupt

        monkeypatch.setattr(DiffusionClassifier, "stream", interrupted)
        code, out, _ = call("classify", photos / "dark", "--model", model, "--draws", 2, "--format", output)
        assert code == 130
        assert out.count("dark/") == 3

    def test_a_reader_that_goes_away(self, model, photos):
        """As in `… | head -1`: the pipe is closed before the first line."""
        read, write = os.pipe()
        os.close(read)
        arguments = ["classify", photos / "dark", "--model", model, "--draws", "2", "--format", "jsonl"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run([*COMMAND, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, env=environment)
        os.close(write)
        assert done.returncode == 1
        assert not re.search("Traceback|BrokenPipe|Exception", done.stderr)

    def test_a_mistake_in_a_process_of_its_own(self):
        done = subprocess.run([*COMMAND, "classify", "[red]nowhere"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "error: [red]nowhere: there is no such file or folder\n"


class TestShortlists:
    def test_labels_cost_and_how_often_it_held_the_truth(self, classify, photos):
        code, rows, err = classify(photos, "--shortlist", "gradient:3", "--keep", 2)
        assert code == 0
        held = 0
        for row in rows:
            found = row["shortlist"]
            assert len(found["labels"]) == 2
            assert (found["num_evaluations"], found["cost"]) == (6, 6.0)
            assert row["num_evaluations"] == 6 + 4
            assert row["label"] in found["labels"]
            held += Path(row["image"]).parent.name in found["labels"]
        assert f"the shortlist held the true label of {held / 30:.1%} (" in err

    def test_the_truth_is_not_always_known(self, classify, photos, tmp_path):
        shutil.copy(photos / "dark" / "1.png", tmp_path / "x.png")
        code, (row,), err = classify(tmp_path / "x.png", "--shortlist", "coarse:4", "--keep", 2)
        assert (code, "true label" in err) == (0, False)
        assert row["shortlist"]["cost"] < row["shortlist"]["num_evaluations"] == 24

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--keep", 2], "--keep says how long a --shortlist is: give one"),
            (["--shortlist", "gradient"], "a shortlist of 20 of 3 classes"),
            (["--shortlist", "clip"], "shortlist 'clip' is not known"),
            (["--shortlist", "tree:none.json"], "none.json cannot be read as a tree of labels"),
            (["--shortlist", "model:nowhere", "--keep", 2], "nowhere cannot be loaded to make a shortlist"),
            (["--shortlist", "coarse:nowhere", "--keep", 2], "no model 'nowhere'"),
            (["--shortlist", "coarse:0", "--keep", 2], "does not take images of 0 pixels"),
        ],
    )
    def test_mistakes(self, call, model, photos, options, message):
        code, out, err = call("classify", photos, "--model", model, *options)
        assert (code, out) == (2, "")
        assert message in error(err)


class TestTables:
    def test_what_is_kept(self, tables, classify, photos):
        read = read_tables(tables)
        assert len(read.images) == 30
        assert all(Path(image).parent.name == truth for image, truth in zip(read.images, read.truth, strict=True))
        assert read.class_names == ("dark", "grey", "light")
        about = {"strategy": "fixed:8", "loss": "l2", "timesteps": "even", "seed": 0, "num_dimensions": 64}
        assert about.items() <= read.settings.items()
        _, (row,), _ = classify(photos / "dark" / "3.png", draws=("--draws", 8))
        table = read.errors[read.images.index(str(photos / "dark" / "3.png"))]
        assert table.mean(1).argmin() == read.class_names.index(row["label"])

    def test_from_tables_to_a_calibrated_classifier(self, call, classify, photos, tables, tmp_path):
        out = tmp_path / "c.json"
        code, printed, err = call("calibrate", tables, "--out", out, "--error-rate", 0.2)
        assert (code, err) == (0, f"saved to {out}\n")
        assert re.search(r"strategy *│ sequential:8/0.2", printed)
        code, rows, _ = classify(photos, "--calibration", out, draws=())
        assert code == 0
        assert all(row["num_evaluations"] < 24 or "undecided" in row for row in rows)
        code, printed, _ = call("calibrate", tables, "--out", out, "--error-rate", 0.2, "--draws", 4, "--json")
        report = json.loads(printed)
        assert (report["strategy"], report["num_images"], report["full_evaluations"]) == ("sequential:4/0.2", 30, 12)
        assert report["weights"] is None or report["gain"][1] > 0

    def test_figure_of_a_calibration(self, call, classify, photos, tables, tmp_path):
        arguments = "--out", tmp_path / "c.json", "--error-rate", 0.2, "--figure", tmp_path / "c.png"
        code, _, err = call("calibrate", tables, *arguments)
        assert (code, err.splitlines()[-1]) == (0, f"drawn to {tmp_path / 'c.png'}")
        assert matplotlib.image.imread(tmp_path / "c.png").std() > 0.05
        unlabelled = tmp_path / "u.parquet"
        (tmp_path / "some").mkdir()
        for path in photos.rglob("*.png"):
            shutil.copy(path, tmp_path / "some" / f"{path.parent.name}{path.name}")
        classify(tmp_path / "some", "--save-errors", unlabelled)
        code, _, err = call("calibrate", unlabelled, *arguments)
        assert code == 2
        assert "without true labels" in err

    @pytest.mark.parametrize("name", ["no/f.png", "f.xyz"])
    def test_figures_that_cannot_be_drawn(self, call, tables, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        for command in (["frontier", tables], ["calibrate", tables, "--out", "c.json", "--error-rate", 0.2]):
            code, _, err = call(*command, "--figure", name)
            assert code == 2
            assert f"{name} cannot be drawn" in err

    def test_weights_over_time(self, classify, photos, tmp_path):
        (tmp_path / "w.json").write_text("[1, 0, 0]")
        image = photos / "dark" / "3.png"
        kept = tmp_path / "t.parquet"
        _, (row,), _ = classify(image, "--weights", tmp_path / "w.json", "--save-errors", kept, draws=("--draws", 3))
        read = read_tables(kept)
        assert read.settings["weights"] == [4, 0, 0]
        early = read.errors[0][:, 1].double()  # t = 500, 250, 750, of which one counts
        scores = (-64 * early).softmax(0)
        assert [row["scores"][name] for name in read.class_names] == pytest.approx(scores.tolist(), abs=1e-6)

    @pytest.mark.parametrize("other", [("--strategy", "sequential:2/0.2"), ("--labels", "dark,light")])
    def test_other_draws_or_classes_are_not_calibrated(self, call, classify, photos, tables, tmp_path, other):
        call("calibrate", tables, "--out", tmp_path / "c.json", "--error-rate", 0.2)
        options = photos / "dark" / "0.png", "--strategy", "sequential:8/0.2", *other
        _, (row,), _ = classify(*options, "--calibration", tmp_path / "c.json", draws=())
        _, (same,), _ = classify(*options, draws=())
        assert row["num_evaluations"] == same["num_evaluations"]

    def test_frontier(self, call, tables, tmp_path):
        figure = tmp_path / "f.png"
        code, printed, err = call("frontier", tables, "--figure", figure)
        assert (code, err.splitlines()[-1]) == (0, f"drawn to {figure}")
        assert "sequential, calibrated" in printed
        assert matplotlib.image.imread(figure).std() > 0.05
        code, other, _ = call("frontier", tables, "--weights", "uniform")
        assert (code, other) == (0, printed)
        code, printed, _ = call("frontier", tables, "--json")
        points = [json.loads(line) for line in printed.splitlines()]
        read = read_tables(tables)
        answers = [read.class_names[int(table.mean(1).argmin())] for table in read.errors]
        (full,) = [p for p in points if p["strategy"] == "fixed:8" and p["family"].endswith("all times")]
        assert (full["num_evaluations"], full["accuracy"][0]) == (24, np.mean(np.array(answers) == read.truth))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["calibrate", "{tables}", "--out", "c.json"], "0.01 needs a calibration on at least 99 images"),
            (["calibrate", "{tables}", "--out", "c.json", "--draws", 9], "the tables hold 8 draws; 9 were asked for"),
            (["calibrate", "{tables}", "--out", "no/c.json", "--error-rate", 0.2], "no/c.json cannot be written"),
            (["calibrate", "none.parquet", "--out", "c.json"], "none.parquet cannot be read as error tables"),
            (["frontier", "none.parquet"], "none.parquet cannot be read as error tables"),
            (["frontier", "{tables}", "--weights", "w.json"], "w.json cannot be read as weights"),
        ],
    )  # fmt: skip
    def test_mistakes(self, call, tables, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, out, err = call(*(str(a).format(tables=tables) for a in arguments))
        assert (code, out) == (2, "")
        assert message in err
        assert not list(tmp_path.glob("c.json"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--calibration", "none.json"], "none.json cannot be used as a calibration"),
            (["--save-errors", "no/t.parquet"], "no/t.parquet cannot be written"),
            (["--weights", "none.json"], "none.json cannot be read as weights"),
            (["--weights", "fitted"], "no timestep weights were fitted for this model"),
        ],
    )
    def test_files_that_cannot_be_used(self, call, model, photos, options, message):
        code, out, err = call("classify", photos, "--model", model, *options)
        assert (code, out) == (2, "")
        assert message in err


class TestScore:
    def test_lines_are_what_the_library_answers(self, call, model, photos):
        image = photos / "dark" / "0.png"
        arguments = ["score", image, "--model", model, "--draws", 4, "--unconditional", "--format", "jsonl"]
        code, out, _ = call(*arguments, "--caption", "dark", "--caption", "light")
        assert code == 0
        rows = [json.loads(line) for line in out.splitlines()]
        clf = DiffusionClassifier.from_pretrained(model)
        expected = clf.score(image, ["dark", "light"], unconditional=True, draws=4)
        assert [row["caption"] for row in rows] == ["dark", "light"]
        for row, score in zip(rows, expected, strict=True):
            assert row["image"] == str(image)
            assert row["score"] == pytest.approx(score.score, rel=1e-3)
            assert row["standard_error"] == pytest.approx(score.standard_error, rel=1e-2)
            assert row["unconditional_error"] - row["mean_error"] == pytest.approx(score.score / 64, abs=1e-4)
            assert row["num_evaluations"] == 12

    def test_pairs_as_csv_and_a_caption_that_cannot_be_compared(self, call, model, photos, tmp_path):
        (tmp_path / "captions.txt").write_text("dark\n\nlight\n")
        images = [photos / "dark" / "0.png", photos / "light" / "0.png"]
        captions = ["--captions", tmp_path / "captions.txt", "--pairs"]
        code, out, _ = call("score", *images, "--model", model, "--draws", 2, *captions, "--format", "csv")
        assert code == 0
        rows = list(csv.DictReader(io.StringIO(out)))
        assert [(row["image"], row["caption"]) for row in rows] == [(str(images[0]), "dark"), (str(images[1]), "light")]
        assert [row["standard_error"] for row in rows] == ["", ""]

    def test_a_table_with_a_broken_file(self, call, model, photos, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"\x89PNG")
        image = photos / "dark" / "0.png"
        code, out, _ = call(
            "score", tmp_path, image, tmp_path / "no", "--model", model, "--draws", 2, "--caption", "dark"
        )
        assert code == 1
        assert "± standard error" in out
        assert out.count("failed") == 2
        assert "–" in out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give captions by --caption"),
            (["--caption", "dark", "--captions", "x"], "give captions by --caption"),
            (["--captions", "nowhere.txt"], "nowhere.txt cannot be read"),
            (["--caption", "dark", "--caption", "grey", "--pairs"], "1 images and 2 captions"),
            (["--caption", "drak"], "did you mean dark"),
            (["--caption", "dark", "--template", "a {}"], "no use for a template"),
            (["--caption", "dark", "--image-size", "16"], "images of 8 pixels only; 16 was asked for"),
        ],
    )
    def test_mistakes(self, call, model, photos, arguments, message):
        code, out, err = call("score", photos / "dark" / "0.png", "--model", model, *arguments)
        assert (code, out) == (2, "")
        assert message in error(err)

    def test_pairs_with_a_path_that_is_not_there(self, call, model, photos):
        code, _, err = call("score", photos, "nowhere", "--model", model, "--caption", "dark", "--pairs")
        assert code == 2
        assert "nowhere" in error(err)
        assert "--pairs" in error(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "fashion-sample", "--workers", 2), "--workers is for --ray"),
        (("train", "PHOTOS", "--features", 3), "--features is for --head"),
        (("train", "PHOTOS", "--rivals", 3), "--rivals is for --joint"),
        (("train", "PHOTOS", "--contrastive", "layers=2"), "--contrastive is for images with captions"),
        (("finetune", "PHOTOS", "--model", "fashion", "--rivals", 3), "--rivals is for --joint"),
        (
            ("finetune", "PHOTOS", "--model", "fashion", "--template", "a {}"),
            "--template is for a text-to-image model",
        ),
    ],
)
def test_options_that_would_be_ignored_are_refused(call, photos, tmp_path, arguments, message):
    words = [photos if word == "PHOTOS" else word for word in arguments]
    code, _, err = call(*words, "--out", tmp_path / "out")
    assert (code, error(err).startswith(message)) == (2, True)
