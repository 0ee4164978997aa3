"""Tasks of captions by the command line."""

import json

import pytest
from caption_files import ROWS, winoground, write_rows
from commands import error
from contrastive_builders import build
from evaluations import pairs, pixels
from image_files import png

from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows
from diffusion_classifier.tasks import CAPTION_TASKS, CaptionTask


def colours(i):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    build("clip", folder)
    return folder


@pytest.fixture
def evaluate(call, model_folder, tmp_path):
    """Evaluates a small Winoground: code, what is printed, standard error."""
    winoground(tmp_path / "w.parquet", count=4, broken=[(2, 1)], content=colours)

    def evaluate(*arguments, task="winoground", out="run", model=None, data="w.parquet"):
        model = model or model_folder("sd-epsilon")
        given = ("--data", tmp_path / data) if data else ()
        return call("evaluate", task, "--out", tmp_path / out, "--model", model, *given, *arguments)

    return evaluate


FAST = ("--strategy", "fixed:3", "--batch-size", 4, "--device", "cpu")


def test_winoground(evaluate, tmp_path):
    code, out, err = evaluate(*FAST, "--store-errors")
    assert code == 1  # an image failed
    assert "7 of 8, 1 failed" in out
    assert "pairs without both images, which are not counted: 1" in err
    for line in ("text score, object", "image score, relation", "group score"):
        assert line in out
    assert "chance 16.7%" in out
    assert "the error of the null condition less that of the caption" in out
    rows = {row["id"]: row for row in read_rows(tmp_path / "run").to_pylist()}
    assert set(rows) == {f"{e}/{k}" for e in range(4) for k in (0, 1)}
    assert (rows["0/1"]["truth"], rows["0/1"]["tag"]) == ("b on a 0", "object")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["composition"]
    assert summary["overall"]["num_examples"] == 3
    assert summary["overall"]["chance"] == {"text": 0.25, "image": 0.25, "group": pytest.approx(1 / 6)}
    assert summary["by_tag"].keys() == {"object", "relation"}
    assert (read_spec(tmp_path / "run").task, read_spec(tmp_path / "run").metric) == ("winoground", "text_score")


def test_a_contrastive_model_in_the_same_table(evaluate, call, clip, tmp_path):
    evaluate(*FAST)
    code, out, _ = evaluate(model=clip, out="clip")
    assert code == 1
    assert "the model's logits" in out
    code, out, _ = call("summarize", tmp_path / "run", tmp_path / "clip", "--format", "json")
    found = json.loads(out)
    assert code == 0
    assert [run["num_evaluations"] for run in found["runs"]] == [9, 0]
    assert found["comparisons"][0]["num_pairs"] == 3
    code, out, _ = call("summarize", tmp_path / "run", tmp_path / "clip")
    assert "on 3 pairs, text score; p = " in out
    code, out, _ = call("summarize", tmp_path / "run", tmp_path / "clip", "--format", "markdown")
    assert "| group score |" in out


def test_rescored(evaluate, call, tmp_path):
    evaluate(*FAST, "--store-errors")
    weights = tmp_path / "w.json"
    weights.write_text("[0, 1]")
    code, out, _ = call("rescore", tmp_path / "run", "--out", tmp_path / "again", "--weights", weights)
    assert code == 0
    assert "text score" in out
    code, _, err = call("report", tmp_path / "run", "-o", tmp_path / "r.html", "--data", tmp_path / "w.parquet")
    assert code == 2
    assert "have captions of their own" in error(err)


def test_the_papers_preset(evaluate, tmp_path):
    code, _, err = evaluate(
        "--preset", "paper", "--image-size", 16, "--batch-size", 64, "--limit", 2, "--dtype", "float32"
    )
    assert code == 0, err
    spec = read_spec(tmp_path / "run")
    assert (spec.strategy, spec.loss, spec.weights, spec.unconditional) == ("fixed:1000", "l2", None, True)
    assert (spec.num_images, spec.timesteps) == (2, "even")


def test_a_file_of_ones_own(evaluate, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(10 * i))
    write_rows(tmp_path / "d.json", ROWS)
    own = ("--tag-column", "kind", "--false-column", "negative_caption")
    code, out, err = evaluate(*FAST, *own, task="captions", data="d.json")
    assert (code, err) == (0, "")
    assert "chance accuracy" in out
    assert "50.0%" in out
    assert "accuracy, swap" in out
    code, _, err = evaluate(*FAST, *own, task="captions", data="d.json")
    assert (code, err) == (0, "resuming: 3 of 3 images are done\n")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("--limit", 3), {}, "come in pairs: the limit must be even; got 3"),
        (("--shortlist", "gradient:4"), {}, "a --shortlist is of classes"),
        (("--label-column", "x"), {}, "the task winoground has no use for --label-column"),
        (("--images", "x"), {}, "the task winoground has no use for --images"),
        (("--class-names", "a,b"), {}, "the task winoground has no use for --class-names"),
        (("--unconditional", "--strategy", "sequential:8/0.1"), {}, "leave out --unconditional"),
        ((), {"task": "captions", "data": None}, "give the file of them by --data"),
        ((), {"task": "captions"}, "has no column of images"),
        ((), {"model": "fashion"}, "captions, which this model does not read: it knows 10 classes"),
        (("--preset", "mine"), {}, "there is no preset 'mine' for winoground; known are: paper"),
        (("--unconditional",), {"task": "fashion-sample", "data": None}, "--unconditional is for tasks of captions"),
        (("--tag-column", "x"), {"task": "fashion-sample", "data": None}, "--tag-column is for the task captions"),
    ],
)
def test_mistakes(evaluate, arguments, options, message):
    code, out, err = evaluate(*arguments, **options)
    assert (code, out) == (2, "")
    assert message in error(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "fixed:3"), "is a contrastive model, which has no use for --strategy"),
        (("--store-errors",), "no use for --store-errors"),
        (("--ray", "local"), "no use for --ray"),
        (("--seed", 1), "no use for --seed"),
        (("--batch-size", 4), "no use for --batch-size"),
        (("--template", "a"), "must hold {} exactly once"),
    ],
)
def test_mistakes_with_a_contrastive_model(evaluate, clip, arguments, message):
    code, out, err = evaluate(*arguments, model=clip)
    assert (code, out) == (2, "")
    assert message in error(err)


def test_a_contrastive_model_on_classes(call, clip, tmp_path):
    code, out, _ = call("evaluate", "fashion-sample", "--model", clip, "--limit", 5, "--out", tmp_path / "run")
    assert code == 0
    assert "5 of 5" in out
    assert read_spec(tmp_path / "run").templates == ("a photo of a {}.",)
    code, _, err = call("report", tmp_path / "run", "-o", tmp_path / "r.html")
    assert (code, err) == (0, f"written to {tmp_path / 'r.html'}\n")


def test_when_no_pair_is_whole(evaluate, tmp_path):
    (tmp_path / "ids").write_text("2/0\n2/1\n")
    code, out, err = evaluate(*FAST, "--subset", tmp_path / "ids")
    assert code == 1
    assert "pairs without both images, which are not counted: 1" in err
    assert "text score" in out


def test_tasks(call):
    code, out, _ = call("tasks")
    assert code == 0
    assert "winoground" in out
    assert "captions" in out
    code, out, _ = call("tasks", "show", "winoground")
    assert code == 0
    for word in ("fixed:1000", "34.0% by Stable Diffusion 2.0", "object 41.8", "never on the data", "--data, --split"):
        assert word in out
    code, out, _ = call("tasks", "show", "captions")
    assert code == 0
    assert "--false-column" in out


def test_a_task_in_the_package(evaluate, call, monkeypatch, tmp_path):
    """Registered by a line: its function is called without anything."""
    task = CaptionTask(name="mine", title="Mine", open=lambda: pairs(2), licence="MIT", citation="nobody", num_images=4)
    monkeypatch.setitem(CAPTION_TASKS, "mine", task)
    code, out, err = evaluate(*FAST, task="mine", data=None)
    assert (code, err) == (0, "")
    assert "group score" in out
    assert read_spec(tmp_path / "run").task == "mine"
    code, _, err = evaluate(*FAST, task="mine", out="other")
    assert (code, error(err)) == (2, "the task mine has no use for --data: its images are in the package")
    assert "none: the images are in the package" in call("tasks", "show", "mine")[1]
