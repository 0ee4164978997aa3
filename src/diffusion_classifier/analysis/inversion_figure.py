"""Figure of an image and its reconstructions (paper, figure 5)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .inversion import Reconstruction
from .plotting import pyplot, save


def draw_reconstructions(original: Image.Image, found: Sequence[Reconstruction], file: Path) -> None:
    """Draw the original and each reconstruction, with prompts and distances.

    Raises:
        InputError: matplotlib is not installed, or the file cannot be written.
    """
    plt = pyplot()
    columns = min(5, len(found) + 1)
    rows = -(-(len(found) + 1) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.9 * rows), layout="constrained", squeeze=False)
    panels = [("original", original, "")]
    for r in found:
        lpips = "" if r.lpips is None else f", LPIPS {r.lpips:.3f}"
        panels.append((r.prompt or "autoencoder alone", r.image, f"RMSE {r.rmse:.3f}, SSIM {r.ssim:.3f}{lpips}"))
    for ax, (title, image, distances) in zip(axes.flat, panels, strict=False):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        ax.set_title("\n".join(textwrap.wrap(title, 30)), fontsize=8)
        ax.set_xlabel(distances, fontsize=7)
        ax.set(xticks=[], yticks=[])
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    save(fig, file)
