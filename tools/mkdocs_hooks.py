"""MkDocs hooks that add the model cards of the bundled models, stored in the package, to the documentation."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ZOO = Path(__file__).parents[1] / "src/diffusion_classifier/zoo"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the model cards and their images."""
    for card in sorted(ZOO.glob("*/README.md")):
        name = card.parent.name
        text = re.sub(r"\A---\n.*?\n---\n", "", card.read_text("utf-8"), flags=re.DOTALL)
        text = re.sub(r"\]\((\w+\.png)\)", rf"]({name}-\1)", text.replace("](../../../../docs/", "](../"))
        files.append(File.generated(config, f"cards/{name}.md", content=text))
        for picture in card.parent.glob("*.png"):
            files.append(File.generated(config, f"cards/{name}-{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to model cards at the pages that `on_files` adds."""
    return re.sub(
        r"\]\((?:\.\./)?src/diffusion_classifier/zoo/(\w[\w-]*)/README\.md(#[\w-]+)?\)", r"](cards/\1.md\2)", markdown
    )
