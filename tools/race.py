"""Animate how the posterior of one bundled image changes during the search.

python tools/race.py docs/race.gif
"""

import argparse
from pathlib import Path

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis import pyplot
from diffusion_classifier.app import dropped, watch
from diffusion_classifier.data import load_sample
from diffusion_classifier.search import Classification

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path, help="GIF file to write")
parser.add_argument("--index", type=int, default=10, help="index in the bundled sample (default: %(default)s)")
options = parser.parse_args()

plt = pyplot()
from matplotlib.animation import FuncAnimation, PillowWriter  # noqa: E402

image = load_sample()[options.index].image
steps = list(watch(DiffusionClassifier.from_pretrained("fashion"), image))
names = list(steps[-1].scores)[::-1]  # best class at the top
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 2.9), width_ratios=(1, 1.6), layout="constrained")
left.imshow(image, cmap="gray")
left.axis("off")


def draw(step: Classification) -> None:
    """Draw one frame."""
    right.clear()
    out = dropped(step)
    chances = [0.0 if name in out else step.scores[name] for name in names]
    right.barh(names, chances, color=["C0" if name == step.label else "0.7" for name in names])
    right.set(xlim=(0, 1), xlabel="p(class | image)")
    right.set_title(
        f"{int((~step.errors.isnan()).any(0).sum())} draws, {step.num_evaluations} evaluations",
        fontsize=9,
        loc="left",
    )
    for tick, name in zip(right.get_yticklabels(), names, strict=True):
        tick.set_color("0.8" if name in out else "black")
    right.spines[["top", "right"]].set_visible(False)


frames = [*steps, *[steps[-1]] * 5]
FuncAnimation(fig, draw, frames).save(options.out, PillowWriter(fps=2), dpi=90)
