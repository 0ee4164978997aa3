"""Warnings of Pillow are in the records of the command, and not on the terminal."""

import json
import os
import re
import subprocess
import sys

import pytest
from commands import TRAIN
from image_files import faulty_images

from diffusion_classifier.runs import read_rows

PROGRAM = """if True:
    import json, sys
    from diffusion_classifier.cli import main
    for arguments in json.loads(sys.argv[1]):
        sys.argv = ["diffusion-classifier", *arguments]
        try:
            main()
        except SystemExit as e:
            print(f"exit {e.code} of {arguments[0]}")
    """


@pytest.mark.slow
def test_the_terminal_holds_none_and_the_records_all(model, tmp_path):
    faulty = faulty_images()
    usable = [name for name in faulty if name in ("exif.jpg", "palette.png")]
    for name, (content, _) in faulty.items():
        for place in ("all", *(("train/a", "train/b") if name in usable else ())):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_bytes(content)
    out = [str(tmp_path / name) for name in ("run", "trained")]
    commands = [
        ["classify", str(tmp_path / "all"), "--model", str(model), "--draws", "2", "--format", "jsonl"],
        ["evaluate", str(tmp_path / "all"), "--class-names", "dark,grey,light", "--model", str(model),
         "--out", out[0], "--strategy", "fixed:2"],
        ["train", str(tmp_path / "train"), "--out", out[1], "--epochs", "1", "--size", "8", *TRAIN],
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("exit")] == [
        "exit 1 of classify", "exit 1 of evaluate", "exit 0 of train",
    ], done.stderr  # fmt: skip
    rows = {os.path.basename(row["image"]): row for row in map(json.loads, lines[: len(faulty)])}
    for name, (_, said) in faulty.items():
        record = "; ".join(rows[name]["notes"]) if name in usable else rows[name]["error"]
        assert said in record
    stored = {row["id"]: row for row in read_rows(tmp_path / "run").to_pylist()}
    for name, (_, said) in faulty.items():
        assert said in ("; ".join(stored[name]["notes"]) if name in usable else stored[name]["reason"])
    assert "Pillow warned of 2 of 4 images, such as " in done.stderr
    told = [line for line in done.stderr.splitlines() if not re.search("^Pillow warned of|: failed: ", line)]
    assert not [line for line in told if any(said in line for _, said in faulty.values())], done.stderr
    assert "Warning" not in done.stderr
    assert "site-packages" not in done.stderr
