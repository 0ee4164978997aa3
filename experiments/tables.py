"""Compare classification methods on the same images, as in the paper's tables 1 and 3, with intervals.

    python experiments/tables.py FASHION_MNIST BUILD DOCS     # trains, draws, evaluates, writes; resumes

Table 1 compares each diffusion model with other models on its own test images. These are baselines made from its
samples or its features, contrastive models and a supervised network. Table 3 compares diffusion models of Fashion-MNIST
with supervised networks of several sizes and training lengths, on its test images and under every corruption. The
baselines are trained on images that `make train-fashion` does not hold out.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common import load, run_evaluation, scene_images, train_for
from rich.progress import track

from diffusion_classifier import load_denoiser
from diffusion_classifier.analysis import draw_effective, draw_severities, measure_robustness, read_runs
from diffusion_classifier.baselines import FEATURES, load_encoder, save_gaussians
from diffusion_classifier.data import CORRUPTIONS, Corruption, corrupted, open_labelled
from diffusion_classifier.metrics import Interval
from diffusion_classifier.runs import choose, summarize
from diffusion_classifier.tasks import open_task
from diffusion_classifier.training import (
    SupervisedConfig,
    SyntheticConfig,
    TrainingImages,
    draw_data_set,
    load_labelled_images,
    train_features,
)

SUPERVISED = {
    "ResNet-18, short": (SupervisedConfig("resnet-18"), 2e13),
    "ResNet-18": (SupervisedConfig("resnet-18"), 1e14),
    "ResNet-18, half of `fashion-fast`": (SupervisedConfig("resnet-18", batch_size=128), 1.1e15),
    "ResNet-34": (SupervisedConfig("resnet-34"), 2e14),
    "ViT tiny, short": (SupervisedConfig("vit-tiny"), 5e13),
    "ViT tiny": (SupervisedConfig("vit-tiny"), 2e14),
    "ViT small": (SupervisedConfig("vit-small"), 2e14),
}
"""Name → training settings and FLOPs."""
HEADS_SEE = 40_000
"""Number of images, repetitions included, that a head on features is trained on."""
TEMPLATES = ("a {}",)


@dataclass
class Tables:
    """Paths and sizes of the experiment."""

    data: str
    build: Path
    diffusion: list[str]
    flops: float
    drawn: int
    images: int | None
    corrupted: int

    @property
    def runs(self) -> Path:
        """Folder of runs."""
        return self.build / "runs"

    def supervised(self, name: str, images: Callable[[], TrainingImages], how: tuple[SupervisedConfig, float]) -> str:
        """Train a network on these images, or resume, and return its folder."""
        folder = self.build / "models" / name
        print(f"training {name}", flush=True)
        train_for(images(), how[0], how[1] * self.flops, folder)  # returns at once if training is finished
        return str(folder)

    def baselines(
        self, model: str, training: Callable[[], TrainingImages], classes: list[str]
    ) -> Iterator[tuple[str, str]]:
        """Make the baselines from samples and features of a diffusion model; yield name and folder."""
        base = self.build / "models" / model
        drawn, denoiser = base / "drawn", load_denoiser(model)
        templates = () if denoiser.class_names is not None else TEMPLATES
        recipe = SyntheticConfig(tuple(classes), self.drawn // len(classes), templates)
        for _ in track(draw_data_set(denoiser, recipe, drawn), description=f"{model} draws", total=len(recipe)):
            pass
        images = training()
        synthetic = lambda: load_labelled_images(str(drawn), size=images.images.shape[-1])  # noqa: E731
        yield "synthetic data (ResNet-18)", self.supervised(f"{model}/synthetic", synthetic, SUPERVISED["ResNet-18"])
        for head in ("linear", "conv"):
            folder = base / f"features-{head}"
            epochs = self.flops * HEADS_SEE / len(images)
            config = SupervisedConfig(head, epochs=epochs, optimizer="adamw", learning_rate=1e-3, batch_size=64)
            train_features(images, denoiser, model, config, folder)
            yield f"features, {head} head", str(folder)
        encoders = {"its own features": (model, "diffusion")}
        if model == "scenes":
            encoders["the contrastive model's"] = ("scenes/contrastive", "hub")
        for what, (encoder, kind) in encoders.items():
            folder = base / f"gaussian-{kind}"
            if not (folder / FEATURES).exists():
                save_gaussians(load_encoder(encoder, kind), encoder, open_labelled(str(drawn), split="train"), folder)
            yield f"Gaussians of drawn images in {what}", str(folder)


def table_1(tables: Tables) -> list[str]:
    """Return table 1 as lines of Markdown."""
    lines = _header(["model, task", "method", "accuracy"])
    worlds = {
        "scenes": ("scenes-nouns", lambda: scene_images(tables.data, "train", 20_000)),
        "fashion": ("fashion-mnist", lambda: load(tables.data)[0]),
    }
    for model, (task, training) in worlds.items():
        # `scenes` uses the 1,000 images in the package, as its model card does.
        definition, source = open_task(task, data=tables.data if model == "fashion" else None)
        methods = {"the diffusion model as a classifier": model}
        methods |= dict(tables.baselines(model, training, list(source.class_names)))
        if model == "scenes":
            methods["contrastive model, same text encoder"] = "scenes/contrastive"
        name = "ResNet-18" if model == "fashion" else f"{model}/supervised"
        methods["supervised (ResNet-18)"] = tables.supervised(name, training, SUPERVISED["ResNet-18"])
        # Share these two runs with table 3.
        runs = {model: model, methods["supervised (ResNet-18)"]: "ResNet-18"}
        for method, folder in methods.items():
            out = tables.runs / task / runs.get(folder, f"{model}, {method}")
            s = summarize(run_evaluation(folder, source, out, tables.images, task=definition))
            lines.append(f"| {model}, {task} | {method} | {s.accuracy!s} |")
    return lines


def table_3(tables: Tables, docs: Path) -> list[str]:
    """Return table 3 as lines of Markdown, and write the figures of robustness."""
    definition, source = open_task("fashion-mnist", data=tables.data)
    images = lambda: load(tables.data)[0]  # noqa: E731
    models = {name: name for name in tables.diffusion}
    models |= {name: tables.supervised(name, images, how) for name, how in SUPERVISED.items()}
    some = source.take(choose(source, limit=tables.corrupted))
    shifts = [Corruption(name, severity) for name in CORRUPTIONS for severity in range(1, 6)]
    plain, runs = {}, []
    for name, folder in models.items():
        runs.append(
            run_evaluation(folder, source, tables.runs / "fashion-mnist" / name, tables.images, task=definition)
        )
        plain[name] = summarize(runs[-1])
        under = tables.runs / "shifts" / name
        runs += [run_evaluation(folder, corrupted(some, s), under / str(s), task=definition) for s in shifts]
    # Corruption errors are relative to the first supervised network.
    found = {m.model: m for m in measure_robustness(sorted(read_runs(runs), key=lambda r: not r.supervised))}
    found = {name: replace(found[folder], model=name) for name, folder in models.items()}
    draw_effective(list(found.values()), docs / "effective-robustness.png")
    draw_severities(list(found.values()), docs / "robustness.png")
    how = {name: f"{flops * tables.flops:.2g}".replace("+", "") for name, (_, flops) in SUPERVISED.items()}
    columns: dict[str, Callable[[str], str]] = {
        "training FLOPs": lambda n: how.get(n, "see its model card"),
        "accuracy, all test images": lambda n: str(plain[n].accuracy),
        "ECE": lambda n: f"{plain[n].calibration_error:.3f}",
        "accuracy, all corruptions": lambda n: str(found[n].mean),
        "corruption error": lambda n: f"{found[n].corruption_error:.2f}",
        "effective robustness, points": lambda n: _points(found[n].effective),
    }
    by_shift = {shift: [_mean(found[n].by_shift[shift]) for n in models] for shift in CORRUPTIONS}
    return [
        *_header(["model", *columns]),
        *(f"| {name} | " + " | ".join(value(name) for value in columns.values()) + " |" for name in models),
        "",
        *_header([f"accuracy, mean of five severities; {len(some)} images per severity", *models]),
        *(
            f"| {shift} | " + " | ".join(f"{share:.1%}" for share in shares) + " |"
            for shift, shares in by_shift.items()
        ),
    ]


def _header(names: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]


def _mean(by: Mapping[int, Interval]) -> float:
    return sum(share for share, *_ in by.values()) / len(by)


def _points(effective: Interval | None) -> str:
    return "–" if effective is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * e for e in effective))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("build", type=Path)
parser.add_argument("docs", type=Path)
parser.add_argument(
    "--diffusion",
    nargs="+",
    default=["fashion", "fashion-fast"],
    help="diffusion models of Fashion-MNIST (default: %(default)s)",
)
parser.add_argument(
    "--flops", type=float, default=1.0, help="factor on the FLOPs of every training (default: %(default)s)"
)
parser.add_argument("--drawn", type=int, default=5000, help="images per synthetic data set (default: %(default)s)")
parser.add_argument("--images", type=int, help="images per test set, a multiple of --shifted (default: all)")
parser.add_argument(
    "--shifted", type=int, default=100, help="images per corruption and severity (default: %(default)s)"
)
options = parser.parse_args()
tables = Tables(
    options.data, options.build, options.diffusion, options.flops, options.drawn, options.images, options.shifted
)
texts = {"1": table_1(tables), "3": table_3(tables, options.docs)}
page = options.docs / "rivals.md"
text = page.read_text("utf-8")
for number, lines in texts.items():
    start, end = f"<!-- table {number}, by make tables -->\n", "<!-- end -->"
    before, _, after = text.partition(start)
    text = before + start + "\n" + "\n".join(lines) + "\n\n" + end + after.partition(end)[2]
page.write_text(text, "utf-8")
