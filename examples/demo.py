"""Classify 16 bundled photographs with the bundled model, print the table, and draw `demo.png`.

Run by `make demo`.
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
"""Of the errors over time that are drawn: evenly spread, where the search itself stops as soon as it can."""


def draw(
    classifier: DiffusionClassifier,
    images: list[Image.Image],
    truths: list[str],
    results: list[Classification],
    out: Path,
) -> None:
    """The surest, the middling and the least sure image: photograph, posterior, errors of the best two classes."""
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
        curves.set(title="error less the mean of both (lower is better)", xlabel="timestep")
        curves.ticklabel_format(axis="y", scilimits=(0, 0))
        curves.legend(fontsize=8)
    fig.savefig(out, dpi=130)


def main() -> None:
    """Classify, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fashion")
    parser.add_argument("--out", type=Path, default=Path("demo.png"))
    options = parser.parse_args()
    samples = load_sample(16)
    classifier = DiffusionClassifier.from_pretrained(options.model)
    results = classifier.classify([sample.image for sample in samples])
    table = Table("photograph", "truth", "prediction", "score", "evaluations", title="Fashion-MNIST, test set")
    right = [result.label == sample.label for sample, result in zip(samples, results, strict=True)]
    for sample, result, is_right in zip(samples, results, right, strict=True):
        label = f"[{'green' if is_right else 'red'}]{result.label}[/]"
        table.add_row(f"#{sample.index}", sample.label, label, f"{result.score:.3f}", str(result.num_evaluations))
    console = Console()
    console.print(table)
    console.print(f"{sum(right)} of {len(right)} right ({sum(right) / len(right):.0%})", highlight=False)
    draw(classifier, [sample.image for sample in samples], [sample.label for sample in samples], results, options.out)
    console.print(f"picture: {options.out}", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except InputError as e:
        raise SystemExit(f"error: {e}") from None
