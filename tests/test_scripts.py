"""Every script that is committed can be imported and says how it is called."""

import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(
    path for folder in ("benchmarks", "experiments", "tools", "examples") for path in (ROOT / folder).glob("*.py")
)
OPTIONAL = {"experiments/adversarial.py": "art"}
"""Script → a library that the development environment lacks."""


def name_of(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_help(path, monkeypatch, capsys):
    if name_of(path) in OPTIONAL:
        pytest.importorskip(OPTIONAL[name_of(path)])
    before = set(sys.modules)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    try:
        if re.search(r"^ *parser = argparse", path.read_text("utf-8"), re.MULTILINE):
            with pytest.raises(SystemExit) as e:
                runpy.run_path(str(path), run_name="__main__")
            assert e.value.code == 0
            assert "usage" in capsys.readouterr().out
        else:
            runpy.run_path(str(path))  # imported by other scripts, or a program without arguments
    finally:
        for name in set(sys.modules) - before:
            if str(path.parent) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def test_every_experiment_serves_a_page():
    table = (ROOT / "experiments" / "README.md").read_text("utf-8")
    pages = dict(re.findall(r"^\| `(\w+\.py)` \| \[\w+\.md\]\(\.\./(docs/\w+\.md)\)", table, re.MULTILINE))
    assert set(pages) == {path.name for path in SCRIPTS if path.parent.name == "experiments"} - {"common.py"}
    for script, page in pages.items():
        text = (ROOT / page).read_text("utf-8")
        assert f"experiments/{script}" in text or (script == "tables.py" and "make tables" in text)
