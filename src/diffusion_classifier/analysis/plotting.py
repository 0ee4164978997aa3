"""Figures on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError


def pyplot() -> Any:
    """Return matplotlib's pyplot, without windows.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError as e:
        raise InputError("figures need matplotlib: pip install 'diffusion-classifier[figures]'") from e
    return plt


def save(figure: Any, file: Path) -> None:
    """Write a figure in the format of the file's suffix, and close it.

    Raises:
        InputError: the file cannot be written, or the format is unknown.
    """
    try:
        figure.savefig(file, dpi=150)
    except (OSError, ValueError) as e:
        raise InputError(f"{file} cannot be drawn: {e}") from e
    finally:
        pyplot().close(figure)
