"""Write the table of columns in docs/runs.md, from the fields of `ResultRow` and the docstrings under them."""

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path

from diffusion_classifier.runs import SCHEMA, ResultRow

PAGE = Path(__file__).parents[1] / "docs" / "runs.md"
BEGIN = "<!-- Written by tools/row_table.py from runs/row.py; change that. -->\n"
END = "<!-- End of the table. -->\n"


def docstrings() -> dict[str, str]:
    """Return a map from each field to the docstring under it."""
    tree = ast.parse(inspect.getsource(ResultRow)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def table() -> str:
    """Return the table in Markdown."""
    text = docstrings()
    lines = ["| column | type | content |", "| --- | --- | --- |"]
    for column in SCHEMA:
        kind = re.sub(r"(item|element): | \('entries'\)", "", str(column.type))
        lines.append(f"| `{column.name}` | {kind.replace('<', '&lt;')} | {text[column.name]} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """Return the page with an up-to-date table."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
