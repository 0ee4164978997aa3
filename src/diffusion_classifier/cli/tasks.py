"""`tasks`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..data.prompts import fill_template
from ..errors import InputError
from .options import app, stdout
from .prompts import print_task, prompts_of

if TYPE_CHECKING:
    from ..tasks import CaptionTask, Task

tasks = typer.Typer(help="List the tasks of `evaluate`, or describe one.", invoke_without_command=True)
app.add_typer(tasks, name="tasks")


@tasks.callback()
def _list(context: typer.Context) -> None:
    """List the tasks of `evaluate`.

    Example: `diffusion-classifier tasks show pets`
    """
    if context.invoked_subcommand is not None:
        return
    from ..tasks import CAPTION_TASKS, TASKS

    table = Table("task", "data set", "classes", "images", "presets")
    for column in table.columns[1:]:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    for t in TASKS.values():
        table.add_row(t.name, Text(t.title), f"{t.num_classes:,}", f"{t.num_images:,}", ", ".join(t.presets))
    for c in CAPTION_TASKS.values():
        images = "–" if c.num_images is None else f"{c.num_images:,}"
        table.add_row(c.name, Text(c.title), "–", images, ", ".join(c.presets))
    stdout.print(table)
    stdout.print("Or your own data: a folder with one sub-folder per class, a CSV or Parquet file, webdataset shards.")


@tasks.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of a task.")],
    prompts: Annotated[
        bool, typer.Option("--prompts", help="Print the prompt of each class, by default and with each preset.")
    ] = False,
) -> None:
    """Describe a task.

    Examples:
    `diffusion-classifier tasks show imagenet-a`

    `diffusion-classifier tasks show pets --prompts`
    """
    from ..tasks import CaptionTask, find_task

    task = find_task(name)
    if prompts:
        if isinstance(task, CaptionTask) or task.class_names is None:
            what = "captions" if isinstance(task, CaptionTask) else "class names"
            raise InputError(f"the {what} of {name} are with its images: use `evaluate {name} --show-prompts`")
        print_task(task)
        return
    table = Table(show_header=False, title=task.title)
    about = _about_captions(task) if isinstance(task, CaptionTask) else _about_classes(task)
    about |= {"licence": task.licence, "cite": task.citation, "note": task.note or "–"}
    for preset, p in task.presets.items():
        size = "" if p.image_size is None else f", images of {p.image_size} pixels"
        images = "" if p.num_images is None else f", {p.num_images:,} evenly spaced images"
        published = "" if p.accuracy is None else f"; published: {p.accuracy}% by Stable Diffusion 2.0"
        prompt = "" if isinstance(task, CaptionTask) else f"; prompts {_example(task, preset)}"
        about[f"preset {preset}"] = f"{p.strategy}, loss {p.loss}{size}{images}{published}{prompt}"
    about["checked"] = task.checked
    for key, value in about.items():
        table.add_row(key, Text(value))
    stdout.print(table)


def _example(task: Task, preset: str | None = None) -> str:
    """Return the template, and the prompt of the first class if the class names are known."""
    prompts = prompts_of(task, preset)
    (template,) = prompts.templates or ("{}",)
    return f"{template}" + "".join(f", as {prompt!r}" for prompt in fill_template(template, prompts.names[:1]))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def _about_classes(task: Task) -> dict[str, str]:
    return {
        "images": f"{task.num_images:,}, split {task.split}, from {task.source or 'the package'}",
        "classes": f"{task.num_classes:,}" + (f": {_some(task.class_names)}" if task.class_names else ""),
        "prompts": f"{_example(task)}; all with --prompts" if task.class_names else task.template,
        "metric": task.metric.replace("_", " "),
    }


def _about_captions(task: CaptionTask) -> dict[str, str]:
    options = ", ".join(f"--{name.replace('_', '-')}" for name in task.takes)
    return {
        "images": "those of the file" if task.num_images is None else f"{task.num_images:,}",
        "options": options or "none: the images are in the package",
        "metric": "share of true captions preferred; for pairs: text, image and group score",
    }
