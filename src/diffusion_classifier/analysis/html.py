"""Self-contained HTML pages."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InputError
from ..files import write_durably
from .plotting import pyplot

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
figure { display: inline-block; margin: 0 .6rem 1rem 0; vertical-align: top } img { max-width: 100% }
figcaption { font-size: .8rem; max-width: 8.5rem } .wrong { color: #b00 } .shown img { width: 8rem }
pre { overflow: auto; background: #f4f4f4; padding: .6rem }
"""


def write_page(file: Path, title: str, parts: Iterable[str]) -> None:
    """Write a page.

    Args:
        file: file to write.
        title: title of the page.
        parts: HTML of the body.

    Raises:
        InputError: the file cannot be written.
    """
    head = f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    body = "\n".join(parts)
    try:
        write_durably(file, f"<!doctype html>\n<html lang=en><meta charset=utf-8>{head}\n{body}\n</html>\n")
    except OSError as e:
        raise InputError(f"{file} cannot be written: {e}") from e


def embedded(picture: Image.Image | bytes, alt: str = "") -> str:
    """Return an HTML element with a picture, or with the content of a PNG file."""
    if isinstance(picture, Image.Image):
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        picture = buffer.getvalue()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def drawn(alt: str, draw: Callable[[Any], None]) -> str:
    """Return an HTML element with a figure of one panel, which `draw` fills."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.2, 5), layout="constrained")
    draw(axes)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return embedded(buffer.getvalue(), alt)
