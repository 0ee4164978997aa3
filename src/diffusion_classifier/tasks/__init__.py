"""Benchmarks: what they are (`registry`), and their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..data.captioned import CaptionedSource
from ..data.labelled import LabelledSource, open_labelled, renamed
from ..errors import InputError
from .base import CaptionTask as CaptionTask
from .base import Preset as Preset
from .base import Task as Task
from .captions import CAPTION_TASKS as CAPTION_TASKS
from .prompting import Prompts as Prompts
from .prompting import class_prompts as class_prompts
from .registry import TASKS as TASKS


def find_task(name: str) -> Task | CaptionTask:
    """The task of that name.

    Raises:
        InputError: none has it.
    """
    known: dict[str, Task | CaptionTask] = {**TASKS, **CAPTION_TASKS}
    if name not in known:
        near = get_close_matches(name, known, n=3) or known
        raise InputError(f"there is no task {name!r}, nor a folder or file of that name; tasks are {', '.join(near)}")
    return known[name]


def find_preset(task: Task | CaptionTask | None, name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: the task has none of that name.
    """
    presets = {} if task is None else task.presets
    if name not in presets:
        known = ", ".join(presets) or "none"
        raise InputError(
            f"there is no preset {name!r} for {task.name if task else 'data of your own'}; known are: {known}"
        )
    return presets[name]


def open_task(
    name: str,
    *,
    data: str | None = None,
    split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    allow_incomplete: bool = False,
) -> tuple[Task | None, LabelledSource]:
    """A task and its images; no task for data of the user's own.

    Args:
        name: of a task; or a folder, a file, or the id of a data set on the hub, as `open_labelled` takes them.
        data: where the images of the task are, if not on the hub.
        split: as in `open_labelled`, and so the others; the task's own if None.
        image_column: where the images are.
        label_column: where the labels are.
        class_names: replaces the names.
        allow_incomplete: as in `open_labelled`.

    Raises:
        InputError: no such task, or its images cannot be read or are of other classes.
    """
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    if name not in TASKS and (Path(name).exists() or "/" in name):
        return None, open_labelled(
            data or name, split=split, class_names=class_names, allow_incomplete=allow_incomplete, **columns
        )
    task = find_task(name)
    if isinstance(task, CaptionTask):
        raise InputError(f"the images of {name} have captions of their own, not classes")
    if task.make is not None:
        if column := next(filter(columns.get, columns), None):
            raise InputError(f"the task {name} has no use for --{column.replace('_', '-')}")
        source = task.make(data, split)
        return task, source if class_names is None else renamed(source, class_names)
    split = split or (None if data else task.split)
    source = open_labelled(data or task.source, split=split, allow_incomplete=allow_incomplete, **columns)
    numbered, source = _by_number(source, task.num_classes)
    if len(source.class_names) != task.num_classes:
        about = f"{source.name} has {len(source.class_names)} classes; those of {name} are {task.num_classes}"
        if not numbered and all(map(str.isdecimal, source.class_names)):
            least = min(map(int, source.class_names))
            about += f": a part of them is read where its labels count from 0, and these begin at {least}"
        raise InputError(about)
    if class_names is None and task.class_names is not None and (numbered or (task.renamed and data is None)):
        source = _named_by(task.class_names, source)
    return task, source if class_names is None else renamed(source, class_names)


def _by_number(source: LabelledSource, num_classes: int) -> tuple[bool, LabelledSource]:
    """Classes that are called by numbers, in the order of these: 10 comes after 9.

    Returns:
        whether they are called by the numbers from 0 on, and the images, as they were if they are not. Where 0 is among
        the numbers, others may be missing: of classes without an image.
    """
    names = source.class_names
    if not all(name.isascii() and name.isdecimal() for name in names):
        return False, source
    numbers = [int(name) for name in names]
    if len(set(numbers)) < len(numbers) or 0 not in numbers or max(numbers) >= num_classes:
        return False, source
    if numbers == list(range(num_classes)):
        return True, source
    found = dict(zip(numbers, names, strict=True))
    note = f"{num_classes - len(found)} of the {num_classes} classes, which are called by numbers, have no image"
    return True, replace(
        source,
        class_names=tuple(found.get(i, str(i)) for i in range(num_classes)),
        labels=tuple(-1 if label < 0 else numbers[label] for label in source.labels),
        notes=(*source.notes, note) if len(found) < num_classes else source.notes,
    )


def _named_by(names: tuple[str, ...], source: LabelledSource) -> LabelledSource:
    """The same images with a task's names for their classes, and a note of it."""
    if names == source.class_names:
        return source
    pairs = ", ".join(f"{own!r} is {name!r}" for own, name in zip(source.class_names[:3], names, strict=False))
    note = f"class names are the task's, in place of those of {source.name}: {pairs} …; --class-names gives others"
    return replace(renamed(source, names), notes=(*source.notes, note))


def open_caption_task(task: CaptionTask, **options: Any) -> CaptionedSource:
    """Images and captions of a task.

    Args:
        task: see there.
        **options: what was asked for; those that are None, () or False were not.

    Raises:
        InputError: an option that the task has no use for, or as what it is opened by.
    """
    given = {name: value for name, value in options.items() if value not in (None, (), False)}
    for name in given:
        if name not in task.takes:
            raise InputError(f"the task {task.name} has no use for --{name.replace('_', '-')}")
    return task.open(**given)
