"""Each package's __init__ is its public face; whatever is not the package itself imports from these faces only."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import diffusion_classifier

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "diffusion_classifier"
STUBS = SOURCE.rglob("*/__init__.pyi")
FACES = sorted(".".join(("diffusion_classifier", *path.parent.relative_to(SOURCE).parts)) for path in STUBS)
FACES.append("diffusion_classifier")
MODULES = ["diffusion_classifier.errors", "diffusion_classifier.metrics"]
"""Public modules that are no packages."""


def programs():
    """Path and Python source of everything that readers may copy from."""
    for folder in ("benchmarks", "experiments", "tools", "examples"):
        for path in sorted((ROOT / folder).glob("*.py")):
            yield path, path.read_text("utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = [cell["source"] for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        yield path, re.sub(r"^%.*$", "", "\n".join("".join(cell) for cell in cells), flags=re.MULTILINE)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        yield path, "\n".join(re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL))


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_is_there(face):
    package = importlib.import_module(face)
    assert package.__all__
    assert set(dir(package)) >= set(package.__all__)
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), name


def test_about_thirty_names_at_the_top():
    assert 25 <= len(diffusion_classifier.__all__) <= 35


@pytest.mark.parametrize(("path", "source"), [pytest.param(*p, id=str(p[0].relative_to(ROOT))) for p in programs()])
def test_programs_import_from_faces(path, source):
    for node in ast.walk(ast.parse(source)):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for module in (m for m in modules if m.split(".")[0] == "diffusion_classifier"):
            assert module in FACES + MODULES, f"{path.name}: {module} is not public"
            if isinstance(node, ast.ImportFrom):
                package = importlib.import_module(module)
                public = package.__all__ if module in FACES else [n for n in vars(package) if not n.startswith("_")]
                strange = {a.name for a in node.names} - {*public, "__version__"}
                assert not strange, f"{path.name}: {strange} of {module}"


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError):
        diffusion_classifier.Classifier  # noqa: B018 - the access is what is tested


def test_importing_the_package_does_not_import_torch():
    program = "import sys, diffusion_classifier; dir(diffusion_classifier); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
