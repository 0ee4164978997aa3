from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def shown(notebook):
    """Which cells show something."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [any(output.get("name") != "stderr" for output in cell.outputs) for cell in cells]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_first_cell_to_its_last(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    before = shown(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert shown(notebook) == before


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["analyse", "classify", "evaluate"]
