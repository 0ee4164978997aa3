"""Find a task by name and open its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..data.captioned import CaptionedSource
from ..data.labelled import LabelledSource, open_labelled, renamed
from ..errors import InputError
from .caption_tasks import CAPTION_TASKS
from .class_tasks import TASKS
from .task import CaptionTask, Preset, Task


def find_task(name: str) -> Task | CaptionTask:
    """Return the task of that name.

    Raises:
        InputError: No task has this name.
    """
    known: dict[str, Task | CaptionTask] = {**TASKS, **CAPTION_TASKS}
    if name not in known:
        near = get_close_matches(name, known, n=3) or known
        raise InputError(f"there is no task {name!r}, nor a folder or file of that name; tasks are {', '.join(near)}")
    return known[name]


def find_preset(task: Task | CaptionTask | None, name: str) -> Preset:
    """Return a task's preset of that name.

    Raises:
        InputError: The task has no such preset.
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
    """Open the images of a task, or of the user's own data.

    Args:
        name: Name of a task; or a folder, a file, or a data set on the hub, as in `open_labelled`.
        data: Folder, file or data set to read in place of the task's own.
        split: See `open_labelled`. Default: the task's split.
        image_column: See `open_labelled`.
        label_column: See `open_labelled`.
        class_names: Names that replace those of the classes.
        allow_incomplete: See `open_labelled`.

    Returns:
        The task, None for the user's own data; and the images.

    Raises:
        InputError: There is no such task, or its images cannot be read or have other classes.
    """
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    if name not in TASKS and (Path(name).exists() or "/" in name):
        return None, open_labelled(
            data or name, split=split, class_names=class_names, allow_incomplete=allow_incomplete, **columns
        )
    task = find_task(name)
    if isinstance(task, CaptionTask):
        raise InputError(f"the images of {name} have captions of their own, not classes")
    if task.open is not None:
        source = task.open(**_given(task, {"data": data, "split": split, **columns}))
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


def open_caption_task(task: CaptionTask, **options: Any) -> CaptionedSource:
    """Open the images and captions of a task.

    Args:
        task: The task.
        **options: Options that `task.takes` lists. Those that are None, () or False count as not given.

    Raises:
        InputError: The task does not take an option, or its data cannot be read.
    """
    return task.open(**_given(task, options))


def _given(task: Task | CaptionTask, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given; raise InputError if the task does not take one."""
    given = {name: value for name, value in options.items() if value not in (None, (), False)}
    for name in given:
        if name not in task.takes:
            why = "" if task.takes else ": its images are in the package"
            raise InputError(f"the task {task.name} has no use for --{name.replace('_', '-')}{why}")
    return given


def _by_number(source: LabelledSource, num_classes: int) -> tuple[bool, LabelledSource]:
    """Put classes whose names are the numbers from 0 on in numeric order: 10 comes after 9.

    Returns:
        Whether the names are such numbers; and the images, unchanged if not. If 0 is among the numbers, others may be
        missing: they are classes without an image.
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
    note = f"{num_classes - len(found)} of the {num_classes} classes, whose names are numbers, have no image"
    return True, replace(
        source,
        class_names=tuple(found.get(i, str(i)) for i in range(num_classes)),
        labels=tuple(-1 if label < 0 else numbers[label] for label in source.labels),
        notes=(*source.notes, note) if len(found) < num_classes else source.notes,
    )


def _named_by(names: tuple[str, ...], source: LabelledSource) -> LabelledSource:
    """Replace the class names by the task's, with a note."""
    if names == source.class_names:
        return source
    pairs = ", ".join(f"{own!r} is {name!r}" for own, name in zip(source.class_names[:3], names, strict=False))
    note = f"class names are the task's, in place of those of {source.name}: {pairs} …; --class-names gives others"
    return replace(renamed(source, names), notes=(*source.notes, note))
