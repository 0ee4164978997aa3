"""The paper in miniature: its claims asked of the bundled models, each number beside the paper's, as one page.

What costs time are runs, which are kept and go on where they were broken off; the rest is computed anew.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...baselines.load import kind_of, load_baseline
from ...classifier import DiffusionClassifier
from ...data.fashion import FASHION
from ...denoisers import load_denoiser
from ...denoisers.devices import resolve_device
from ...runs.evaluation import ClassEvaluator, choose, evaluate
from ...runs.evaluators import BaselineEvaluator, CaptionEvaluator, choose_captioned
from ...tasks import CAPTION_TASKS, TASKS, CaptionTask, open_caption_task, open_task
from ...training.images import load_labelled_images
from ...training.loop import num_steps
from ...training.supervised import SupervisedConfig, train_supervised
from ...training.synthetic import Recipe, draw_data_set
from ..html import embedded, write_page
from ..inversion import require_skimage
from ..plotting import pyplot
from .claims import SECONDS_TO_NOISE, Claim, OnProgress, Section, claims_of, verdict


@dataclass(frozen=True)
class Work:
    """A run that is needed.

    Args:
        name: of its folder.
        model: bundled.
        task: known.
        images: of them, of the whole reproduction.
        quick: of them, of the quick one.
        seconds: that an image takes on two cores, about.
        options: of the question.
    """

    name: str
    model: str
    task: str
    images: int
    quick: int
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)


_PLACES = {"timesteps": "even:0.75-1", "weights": "training", "strategy": "fixed:64"}  # where scenes tells places apart
WORKS = (
    Work("tables", "fashion", "fashion-sample", 1000, 100, 0.8, {"strategy": "fixed:64"}),
    Work("default", "fashion", "fashion-sample", 1000, 100, 0.1),
    Work("one-draw", "fashion-fast", "fashion-sample", 1000, 100, 0.02),
    Work("nouns", "scenes", "scenes-nouns", 1000, 100, 0.4),
    Work("nouns-contrastive", "scenes/contrastive", "scenes-nouns", 1000, 100, 0.01),
    Work("pairs", "scenes", "scenes-winoground", 800, 120, 0.5, _PLACES),
    Work("pairs-contrastive", "scenes/contrastive", "scenes-winoground", 800, 120, 0.01),
)
DRAWN_STUDENT_RUN = Work("of-drawn", "resnet", "fashion-sample", 1000, 100, 0.02)
"""Of a network that is trained here, on images that `fashion` draws."""
NUM_DRAWN, QUICK_DRAWN = 100, 10
"""Of each class."""
SECONDS_TO_DRAW, SECONDS_TO_LEARN = 0.15, 0.25
"""An image, and a drawn one in all passes over it."""
SUPERVISED = SupervisedConfig(epochs=30.0, batch_size=64, warmup=10)
NUM_INVERTED, QUICK_INVERTED = 50, 10
"""Images that are taken to noise and back, and looked at under several noises."""


def reproduce(
    folder: Path, *, quick: bool = False, tell: OnProgress = lambda *_: None, **options: Any
) -> list[Section]:
    """Do what is not done yet, and write report.html, in `folder`/whole or `folder`/quick.

    Args:
        folder: for these.
        quick: fewer images.
        tell: see `OnProgress`.
        **options: device, dtype and batch_size of the models.

    Raises:
        InputError: a run of something else is where one would go, the folder cannot be written to, or a library is
            missing.
    """
    pyplot()  # what is missing is told before the work, not after it
    require_skimage()
    figures = folder / ("quick" if quick else "whole")
    runs = {work.name: figures / work.name for work in (*WORKS, DRAWN_STUDENT_RUN)}
    for work in WORKS:
        _run(work, work.model, runs[work.name], quick, tell, options)
    network = _taught_by_drawn_images(figures, QUICK_DRAWN if quick else NUM_DRAWN, tell, options)
    _run(DRAWN_STUDENT_RUN, str(network), runs[DRAWN_STUDENT_RUN.name], quick, tell, options)
    classifier = DiffusionClassifier.from_pretrained("fashion", **options)
    sections = claims_of(runs, classifier, figures, QUICK_INVERTED if quick else NUM_INVERTED, tell)
    _write(figures / "report.html", sections, quick, options)
    return sections


def _taught_by_drawn_images(folder: Path, count: int, tell: OnProgress, options: dict[str, Any]) -> Path:
    """A ResNet-18 that never saw but what `fashion` draws."""
    drawn, network = folder / "drawn", folder / DRAWN_STUDENT_RUN.model
    recipe = Recipe(FASHION, count)
    chosen = {name: value for name, value in options.items() if name != "batch_size"}
    tell("drawing", len(list(drawn.glob("*.png"))) * SECONDS_TO_DRAW)
    for _ in draw_data_set(load_denoiser("fashion", **chosen), recipe, drawn):
        tell("drawing", SECONDS_TO_DRAW)
    images, device = load_labelled_images(str(drawn)), resolve_device(options.get("device", "auto"))
    steps, done = num_steps(SUPERVISED, len(images)), 0

    def reach(step: int) -> None:
        nonlocal done
        tell("learning", (step - done) / steps * len(recipe) * SECONDS_TO_LEARN)
        done = step

    train_supervised(images, SUPERVISED, network, device=str(device), on_step=lambda progress: reach(progress.step))
    reach(steps)  # of which none is told where it was finished before
    return network


def _run(work: Work, model: str, folder: Path, quick: bool, tell: OnProgress, options: dict[str, Any]) -> None:
    task: Any = TASKS.get(work.task) or CAPTION_TASKS[work.task]
    of_captions = isinstance(task, CaptionTask)
    source: Any = open_caption_task(task) if of_captions else open_task(work.task)[1]
    limit = work.quick if quick else work.images
    positions = choose_captioned(source, limit=limit) if of_captions else choose(source, limit=limit)
    if kind_of(model):
        classifier: Any = load_baseline(model, device=options.get("device", "auto"))
        question: Any = BaselineEvaluator(task)
    else:
        classifier = DiffusionClassifier.from_pretrained(model, **options)
        kept: dict[str, Any] = {"store_errors": True} if work.name == "tables" else {}
        question = (CaptionEvaluator if of_captions else ClassEvaluator)(task=task, options=work.options, **kept)
    rows = evaluate(
        classifier, source, folder, question, positions=positions, model=model, command=_command(work, quick, options),
        on_start=lambda done, *_: tell(work.name, done * work.seconds),
    )  # fmt: skip
    for _ in rows:
        tell(work.name, work.seconds)


def _command(work: Work, quick: bool, given: Mapping[str, Any]) -> str:
    options = _asked_for(given, "device", "dtype")
    options += "".join(f" --{name} {value}" for name, value in work.options.items())
    errors = " --store-errors" if work.name == "tables" else ""
    limit = work.quick if quick else work.images
    return f"evaluate {work.task} --model {work.model} --limit {limit}{options}{errors} --out {work.name}"


def _asked_for(given: Mapping[str, Any], *names: str) -> str:
    """Those of the options that were not left to us."""
    return "".join(f" --{name} {given[name]}" for name in names if given.get(name, "auto") != "auto")


def _commands(quick: bool, given: Mapping[str, Any]) -> list[str]:
    """That repeat the runs."""
    drawn = f"baseline synthetic --model fashion --per-class {QUICK_DRAWN if quick else NUM_DRAWN}"
    drawn += _asked_for(given, "device", "dtype")
    learned = f"--epochs {SUPERVISED.epochs} --warmup {SUPERVISED.warmup} --validation 0" + _asked_for(given, "device")
    made = [f"{drawn} --out drawn", f"baseline supervised drawn {learned} --out {DRAWN_STUDENT_RUN.model}"]
    return [*(_command(work, quick, given) for work in WORKS), *made, _command(DRAWN_STUDENT_RUN, quick, given)]


def expected_seconds(quick: bool) -> float:
    """Of all of it, on two cores, about; `tell` is given as many."""
    runs = sum(work.seconds * (work.quick if quick else work.images) for work in (*WORKS, DRAWN_STUDENT_RUN))
    drawn = len(FASHION) * (QUICK_DRAWN if quick else NUM_DRAWN)
    return (
        runs
        + drawn * (SECONDS_TO_DRAW + SECONDS_TO_LEARN)
        + SECONDS_TO_NOISE * (QUICK_INVERTED if quick else NUM_INVERTED)
    )


def _write(file: Path, sections: Sequence[Section], quick: bool, given: Mapping[str, Any]) -> None:
    parts = [
        "<h1>The paper in miniature</h1>",
        "<p>Claims of <i>Your Diffusion Model is Secretly a Zero-Shot Classifier</i> (Li et al., ICCV 2023), asked of "
        "small models that were trained on Fashion-MNIST: a claim that holds here need not hold at full scale, nor the "
        "other way round. Shares with their 95 % intervals."
        + (" This was the quick one: few images, wide intervals." if quick else "")
        + "</p>",
        "<table><tr><th>claim<th>in the paper<th>here<th></tr>",
        *(_line(claim) for section in sections for claim in section.claims),
        "</table>",
    ]
    for section in sections:
        if section.figures:
            parts.append(f"<h2>{html.escape(section.title)}</h2>")
        for picture, said in section.figures:
            parts.append(f"<p>{embedded(picture.read_bytes(), said)}<br>{html.escape(said)}</p>")
    lines = "\n".join(f"diffusion-classifier {command}" for command in _commands(quick, given))
    parts.append(f"<h2>To repeat the runs</h2><pre>{html.escape(lines)}</pre>")
    write_page(file, "The paper in miniature", parts)


def _line(claim: Claim) -> str:
    cells = (claim.text, claim.paper, claim.here, verdict(claim))
    kind = " class=wrong" if claim.holds is False else ""
    *first, last = (html.escape(cell) for cell in cells)
    return "<tr>" + "".join(f"<td>{cell}" for cell in first) + f"<td{kind}><b>{last}</b>"
