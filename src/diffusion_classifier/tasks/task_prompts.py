"""Choice of the class names and templates for prompts, with notes on the choices.

Shape legend: K classes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..data.labelled import LabelledSource
from ..data.prompts import check_names_are_words
from ..errors import InputError
from .task import Preset, Task


@dataclass(frozen=True)
class Prompts:
    """Class names and templates for prompts.

    Args:
        names: (K,) class names for prompts.
        templates: Templates of the prompts. None if the names themselves are prompts.
        notes: Sentences on choices that the user did not make.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...] | None
    notes: tuple[str, ...] = ()


def spelled(name: str) -> str:
    """Return a name in the spelling for comparisons: lower-case letters and digits, one space for anything else."""
    return " ".join(re.findall(r"[^\W_]+", name.lower().replace("'", "")))


def class_prompts(
    source: LabelledSource,
    task: Task | None = None,
    *,
    known: Sequence[str] | None = None,
    preset: Preset | None = None,
    template: Sequence[str] | None = None,
    several: bool = False,
) -> Prompts:
    """Return names and templates for a text-to-image model, or names for a class-conditional one.

    Args:
        source: The images.
        task: Their task, if any.
        known: Classes of a class-conditional model; None for a text-to-image model.
        preset: Preset of the task.
        template: The user's own templates, in place of all others.
        several: Whether to use all templates beside the data, which a contrastive model averages, and not only one.

    Raises:
        InputError: The class names are numbers, and the user gave no template; or the preset has prompts for other
            classes.
    """
    if known is not None:
        lower = {name.lower() for name in known}
        names, notes = _names(source, task, None, strict=False)
        if task is None or lower.issuperset(map(str.lower, source.class_names)) or {*map(str.lower, names)} - lower:
            names, notes = source.class_names, ()
        return Prompts(names, None if template is None else tuple(template), notes)
    templates, notes = _templates(source, task, preset, several) if template is None else (tuple(template), ())
    names, more = _names(source, task, preset, strict=template is None)
    if template is None and (task is None or names != task.class_names):
        check_names_are_words(names, source.name)
    if preset is None and task is not None:
        names, told = _told_apart(names, task.told_apart)
        more += told
    count = Counter(names)
    tied = [name for name, words in zip(source.class_names, names, strict=True) if count[words] > 1]
    if tied:
        more += (f"classes of one prompt cannot be told apart, and their ties count as wrong: {', '.join(tied)}",)
    return Prompts(names, templates, (*notes, *more))


def _told_apart(
    names: tuple[str, ...], words: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Replace names that several classes share by the task's words for them, by index, with a note."""
    places = {name: [i for i, other in enumerate(names) if other == name] for name in words}
    found = {
        i: word
        for name, of in words.items()
        if len(of) == len(places[name])
        for i, word in zip(places[name], of, strict=True)
    }
    if not found:
        return names, ()
    told = ", ".join(f"{word!r} (class {i})" for i, word in sorted(found.items()))
    note = f"prompts tell classes that share a name apart by WordNet's words: {told}"
    return tuple(found.get(i, name) for i, name in enumerate(names)), (note,)


def _templates(
    source: LabelledSource, task: Task | None, preset: Preset | None, several: bool
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    beside = source.templates
    if preset is not None and preset.template is not None:
        return (preset.template,), ()
    if several and beside:
        said = f"{len(beside)} templates beside the data are averaged, the first is {beside[0]!r}"
        used = beside
    elif task is not None:
        said = f"the template of {task.name} is used, {task.template!r}, not the {len(beside)} beside the data"
        used = (task.template,)
    else:
        said = f"1 of {len(beside)} templates beside the data is used, {''.join(beside[:1])!r}"
        used = beside[:1]
    chosen = len(beside) > 1 or (task is not None and beside not in ((), (task.template,)))
    return used or None, (f"{said}; --template names others",) if chosen else ()


def _names(
    source: LabelledSource, task: Task | None, preset: Preset | None, strict: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names for prompts: the preset's or the task's, if the class names differ from them in spelling only."""
    own = source.prompt_names or source.class_names
    if task is None or task.class_names is None:
        rough = [name for name in own if "_" in name]
        said = f"{len(rough)} of {len(own)} class names have underscores, which prompts keep, as {''.join(rough[:1])!r}"
        return own, (f"{said}; --class-names gives others",) if rough else ()
    known = {spelled(name): i for i, name in enumerate(task.class_names)}
    known |= {other: known[spelled(name)] for other, name in task.also.items()}
    places = [known.get(spelled(name)) for name in own]
    wanted = (preset and preset.names) or task.class_names
    strange = next((name for i, name in enumerate(own) if places[i] is None or places[i] in places[:i]), None)
    if strange is not None:
        if strict and preset is not None:
            raise InputError(
                f"the preset has prompts for the classes of {task.name}, and {source.name} has one called {strange!r}: "
                f"give names as {', '.join(task.class_names[:3])} …, --class-names, or prompts of your own, --template"
            )
        return own, ()
    names = tuple(wanted[i] for i in places if i is not None)
    changed = [(a, b) for a, b in zip(own, names, strict=True) if a != b]
    if not changed:
        return names, ()
    (was, now), whose = changed[0], "the preset" if preset is not None and preset.names else f"the task {task.name}"
    return names, (f"{len(changed)} of {len(own)} classes are named for the model by {whose}, as {now!r} for {was!r}",)
