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
def test_notebooks_run_from_their_first_cells_to_their_last(tmp_path):
    """In one kernel, which loads the libraries once; all names are deleted before the next notebook."""
    every = [nbformat.read(path, as_version=4) for path in NOTEBOOKS]
    before = [shown(notebook) for notebook in every]
    joined = nbformat.v4.new_notebook(metadata=every[0].metadata)
    for notebook in every:
        joined.cells += [nbformat.v4.new_code_cell("%reset -f"), *notebook.cells]
    NotebookClient(joined, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert [shown(notebook) for notebook in every] == before


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["analyse", "classify", "evaluate"]
