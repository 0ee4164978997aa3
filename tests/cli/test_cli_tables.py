"""Tables and shards by the command line: what is refused is one sentence, and what is left out is said and kept."""

import pytest
from commands import TRAIN, error, save
from image_files import samples, shard, table

from diffusion_classifier.cli.options import read_lines
from diffusion_classifier.errors import InputError
from diffusion_classifier.runs.spec import read_spec
from diffusion_classifier.runs.store import read_rows

FAST = ("--strategy", "fixed:1", "--batch-size", 8, "--device", "cpu", "--class-names", "dark,grey,light")


@pytest.fixture
def incomplete(tmp_path):
    """Two shards of three."""
    for k in (0, 2):
        table(tmp_path / "d" / f"test-{k:05}-of-00003.parquet", [0, 1, 2])
    return tmp_path / "d"


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "DATA", "--model", "MODEL", "--out", "OUT", *FAST),
        ("train", "DATA", "--out", "OUT", "--split", "test", *TRAIN),
        ("finetune", "DATA", "--model", "MODEL", "--out", "OUT", "--split", "test", "--class-names", "dark,grey,light"),
        ("baseline", "supervised", "DATA", "--out", "OUT", "--split", "test"),
        ("baseline", "features", "DATA", "--model", "MODEL", "--out", "OUT", "--split", "test"),
        ("baseline", "gaussian", "DATA", "--model", "MODEL", "--out", "OUT", "--split", "test"),
    ],
    ids=lambda words: words[1] if words[0] == "baseline" else words[0],
)
def test_incomplete_data_is_refused(call, model, incomplete, tmp_path, words):
    places = {"DATA": incomplete, "MODEL": model, "OUT": tmp_path / "out"}
    code, _, err = call(*(places.get(word, word) for word in words))
    assert code == 2
    assert error(err) == f"{incomplete} lacks 1 shards of 3: test-1; use --allow-incomplete to read what is there"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "baseline supervised", "baseline features", "baseline gaussian"])
@pytest.mark.parametrize("names", [("Bag", "bag", "coat"), ("bag", "coat", "Coat")])
def test_names_that_evaluate_refuses_are_not_trained_on(call, model, tmp_path, command, names):
    data = table(tmp_path / "x.parquet", list(names))
    of_model = ("--model", model) if command in ("baseline features", "baseline gaussian") else ()
    code, _, err = call(*command.split(), data, "--out", tmp_path / "out", *of_model)
    assert code == 2
    assert "is given twice" in error(err)
    assert not (tmp_path / "out").exists()


def test_incomplete_data_is_evaluated_when_told_so(call, model, incomplete, tmp_path):
    words = ("evaluate", incomplete, "--model", model, "--out", tmp_path / "run", *FAST)
    code, out, err = call(*words, "--allow-incomplete")
    told = f"{incomplete} lacks 1 shards of 3: test-1: read without the rest"
    assert (code, err) == (0, f"{told}\n")
    assert "6 of 6" in out
    assert read_spec(tmp_path / "run").notes == (told,)
    code, _, err = call("report", tmp_path / "run", "-o", tmp_path / "r.html")  # of a run whose images are known
    assert (code, err) == (0, f"written to {tmp_path / 'r.html'}\n")


def test_incomplete_data_is_trained_on_when_told_so(call, incomplete, tmp_path):
    words = ("train", incomplete, "--out", tmp_path / "m", "--split", "test", "--size", 8, "--epochs", 1, *TRAIN)
    code, _, err = call(*words, "--allow-incomplete")
    assert code == 0
    assert err.startswith(f"{incomplete} lacks 1 shards of 3")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"image;label\n0.png;a\n", "separates fields with semicolons"),
        ("l.csv", "image,label\n0.png,café\n".encode("latin-1"), "is not in UTF-8"),
        ("l.csv", b"image,label\n0.png,a,b\n", "line 2 of"),
        ("l.CSV", b"image,label\n0.png,a\n1.png,\n", "(line 3) has no label"),
        ("l.jsonl", b'{"image": "0.png"\n', "line 1 of"),
        ("l.json", b'[{"image": "0.png", "label": 0.5}]', "does not hold labels"),
        ("l.parquet", b"PAR1", "cannot be read as Parquet"),
        ("l.tar", b"x", "cannot be read as a tar archive"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(call, model, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    code, _, err = call("evaluate", tmp_path / name, "--model", model, "--out", tmp_path / "run")
    assert code == 2
    assert message in error(err)


@pytest.mark.parametrize("name", ["l.csv", "l.tsv", "l.json", "l.jsonl", "L.TSV"])
def test_formats_of_text(call, model, tmp_path, name):
    for i, grey in enumerate((60, 190)):
        save(tmp_path / f"{i}.png", grey)
    labels = ("dark", "light")
    if "json" in name:
        rows = [f'{{"image": "{i}.png", "label": "{label}"}}' for i, label in enumerate(labels)]
        text = f"[{', '.join(rows)}]" if name == "l.json" else "\n".join(rows)
    else:
        between = "\t" if "tsv" in name.lower() else ","
        text = "\n".join(between.join(row) for row in (("image", "label"), ("0.png", "dark"), ("1.png", "light")))
    (tmp_path / name).write_text(text)
    words = ("--strategy", "fixed:1", "--batch-size", 8, "--device", "cpu")
    code, _, err = call("evaluate", tmp_path / name, "--model", model, "--out", tmp_path / "run", *words)
    assert (code, err) == (0, "")
    rows = {row["id"]: row["truth"] for row in read_rows(tmp_path / "run").to_pylist()}
    assert list(rows.values()) == ["dark", "light"]


def test_a_cut_archive(call, model, tmp_path):
    path = shard(tmp_path / "0.tar", samples("0", "1", "2"))
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:2048])
    code, _, err = call("evaluate", path, "--model", model, "--out", tmp_path / "run", *FAST)
    assert code == 2
    assert "is cut off" in error(err)


def test_captions_of_their_own(call, model, tmp_path):
    (tmp_path / "d.csv").write_text("image,caption,negative_caption\n0.png,a cat, big,a dog\n")
    words = ("--model", model, "--out", tmp_path / "run")
    code, _, err = call("evaluate", "captions", "--data", tmp_path / "d.csv", *words)
    assert (code, "line 2 of" in error(err)) == (2, True)


def test_tasks_that_are_always_complete(call, model, tmp_path):
    words = ("--model", model, "--out", tmp_path / "run", "--allow-incomplete")
    code, _, err = call("evaluate", "scenes-pairs", *words)
    assert (code, error(err)) == (2, "the task scenes-pairs has no use for --allow-incomplete")


def test_a_file_of_labels_in_another_encoding(tmp_path):
    (tmp_path / "labels.txt").write_bytes("cat\ncaf\u00e9\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"labels\.txt is not in UTF-8 \(byte 0xe9 at 7\): save it as UTF-8"):
        read_lines(tmp_path / "labels.txt")
