"""Classify 16 bundled images with a bundled model, print a table of predictions, and draw `demo.png`.

`make demo` runs this script.
"""

import argparse
from pathlib import Path

import matplotlib
from PIL import Image
from rich.console import Console
from rich.table import Table

from diffusion_classifier import Classification, DiffusionClassifier, Fixed, InputError
from diffusion_classifier.data import load_sample

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CURVES = Fixed(31)
"""Strategy for the plotted errors: it evaluates evenly spread times, whereas the default search stops early."""


def draw(
    classifier: DiffusionClassifier,
    images: list[Image.Image],
    truths: list[str],
    results: list[Classification],
    out: Path,
) -> None:
    """Draw the images with the highest, the median and the lowest probability of the predicted class.

    Each row shows the image, its posterior, and the errors of the two best classes over time.
    """
    order = sorted(range(len(results)), key=lambda i: -results[i].score)
    rows = [order[0], order[len(order) // 2], order[-1]]
    tables = classifier.classify([images[i] for i in rows], strategy=CURVES)
    fig, axes = plt.subplots(
        len(rows), 3, figsize=(10, 2.9 * len(rows)), width_ratios=[1, 1.5, 1.9], layout="constrained"
    )
    for (photo, bars, curves), i, whole in zip(axes, rows, tables, strict=True):
        result, names = results[i], list(results[i].scores)
        photo.imshow(images[i], cmap="gray", vmin=0, vmax=255)
        photo.set(title=f"truth: {truths[i]}", xticks=[], yticks=[])
        shown = names[:5][::-1]
        colours = ["tab:blue" if name == result.label else "tab:gray" for name in shown]
        bars.barh(shown, [result.scores[name] for name in shown], color=colours)
        bars.set(xlim=(0, 1), title=f"p(class | image), {result.num_evaluations} evaluations")
        by_time = whole.t.argsort()
        best, second = (whole.errors[result.class_names.index(name)][by_time] for name in names[:2])
        for name, errors, colour in ((names[0], best, "tab:blue"), (names[1], second, "tab:orange")):
            curves.plot(whole.t[by_time], errors - (best + second) / 2, "o-", ms=3, lw=1, label=name, color=colour)
        curves.axhline(0, color="black", lw=0.5)
        curves.set(title="error minus the mean of both classes (lower is better)", xlabel="timestep")
        curves.ticklabel_format(axis="y", scilimits=(0, 0))
        curves.legend(fontsize=8)
    fig.savefig(out, dpi=130)


def main() -> None:
    """Classify the images, print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion", help="bundled model or folder (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="image file to write (default: %(default)s)")
    options = parser.parse_args()
    samples = load_sample(16)
    classifier = DiffusionClassifier.from_pretrained(options.model)
    results = classifier.classify([sample.image for sample in samples])
    table = Table("image", "truth", "prediction", "probability", "evaluations", title="Fashion-MNIST, test set")
    right = [result.label == sample.label for sample, result in zip(samples, results, strict=True)]
    for sample, result, is_right in zip(samples, results, right, strict=True):
        label = f"[{'green' if is_right else 'red'}]{result.label}[/]"
        table.add_row(f"#{sample.index}", sample.label, label, f"{result.score:.3f}", str(result.num_evaluations))
    console = Console()
    console.print(table)
    console.print(f"{sum(right)} of {len(right)} correct ({sum(right) / len(right):.0%})", highlight=False)
    draw(classifier, [sample.image for sample in samples], [sample.label for sample in samples], results, options.out)
    console.print(f"figure: {options.out}", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except InputError as e:
        raise SystemExit(f"error: {e}") from None
