"""What is published: a wheel with the bundled models, sources that can be tested, and how to cite them."""

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import diffusion_classifier

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, made of the unpacked sources, and these."""
    out = tmp_path_factory.mktemp("dist")
    command = (sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sources,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sources


def files(folder):
    """What of a folder belongs to the project."""
    return {
        str(file.relative_to(folder))
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_wheel_holds_the_package_with_its_models(built):
    wheel, _ = built
    assert wheel.stat().st_size < 60e6
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = email.message_from_bytes(archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))))
    assert names == {f"diffusion_classifier/{name}" for name in files(ROOT / "src" / "diffusion_classifier")}
    assert about["Version"] == diffusion_classifier.__version__
    assert len(about.get_all("License-File")) == 2


def test_sources_hold_what_make_test_needs(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
        "CITATION.cff",
        "tools/figures.py",
        "examples/demo.py",
    } <= names
    assert {f"tests/{name}" for name in files(ROOT / "tests")} <= names
    assert not any(name.startswith((".venv", "build/", "runs/")) for name in names)


def test_citation():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert about["version"] == diffusion_classifier.__version__
