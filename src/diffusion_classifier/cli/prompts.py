"""Print prompts before any weights are loaded, for `evaluate --show-prompts` and `tasks show --prompts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # takes seconds to import
    from ..data.captioned import CaptionedSource
    from ..data.labelled import LabelledSource
    from ..runs.evaluators import BaselineEvaluator, CaptionEvaluator, ClassEvaluator
    from ..tasks import Prompts, Task


def print_classes(
    evaluator: ClassEvaluator | BaselineEvaluator,
    source: LabelledSource,
    positions: Sequence[int],
    known: Sequence[str] | None,
) -> tuple[str, ...]:
    """Print the prompt of each class of a data set, or the matching class of a class-conditional model.

    Args:
        evaluator: evaluator of the images.
        source: the images.
        positions: positions of the evaluated images in the source.
        known: classes of the model; None for a text-to-image model.

    Returns:
        notes on the prompts.

    Raises:
        InputError: as in the evaluator's `prepare_spec`, except for errors that need the weights or the tokenizer.
    """
    from dataclasses import replace

    from ..data.prompts import fill_template
    from ..denoisers.class_conditional import class_ids
    from ..runs.selection import candidates
    from ..tasks import Task

    prompts = evaluator.prompts(known, source)
    task = evaluator.task if isinstance(evaluator.task, Task) else None
    asked = candidates(known, task, replace(source, class_names=prompts.names))
    print(f"images: {len(positions):,} of the {len(source):,} of {source.name}")
    print(f"classes: {len(source.class_names):,}")
    if known is not None:
        print("prompts: none; the model takes the index of a class\n\nlabel\tclass\tclass of the model")
        rows = [f"{i} {known[i]}" for i in class_ids(asked, known)]
    else:
        _print_templates(prompts.templates, getattr(evaluator, "average", "embedding"))
        print("null condition: not evaluated\n\nlabel\tclass\tprompt")
        rows = fill_template((prompts.templates or ("{}",))[0], [str(name) for name in asked])
    for i, (name, row) in enumerate(zip(source.class_names, rows, strict=True)):
        print(i, name, row, sep="\t")
    return prompts.notes


def print_captions(
    evaluator: CaptionEvaluator | BaselineEvaluator, source: CaptionedSource, positions: Sequence[int]
) -> None:
    """Print the captions of each image, true and false, as prompts.

    Args:
        evaluator: evaluator of the images.
        source: the images.
        positions: positions of the evaluated images in the source.
    """
    from ..data.prompts import fill_template
    from ..search.candidates import as_templates

    templates = as_templates(evaluator.template)
    print(f"images: {len(positions):,} of the {len(source):,} of {source.name}{', in pairs' if source.paired else ''}")
    _print_templates(templates, getattr(evaluator, "average", "embedding"))
    print(f"null condition: {_null_condition(evaluator, source)}\n\nimage\tcaption\tprompt")
    for i in positions:
        for k, prompt in enumerate(fill_template((templates or ("{}",))[0], source.captions[i])):
            print(source.ids[i], "true" if k == source.truth[i] else "false", prompt, sep="\t")


def _null_condition(evaluator: CaptionEvaluator | BaselineEvaluator, source: CaptionedSource) -> str:
    from ..search.strategies import is_exhaustive

    unconditional = getattr(evaluator, "unconditional", False)
    options = getattr(evaluator, "options", {})
    wanted = source.paired if unconditional is None else unconditional
    seen = is_exhaustive(options.get("strategy") or "fixed:64")
    if not wanted or not seen or (options.get("timesteps") or "").startswith("random"):
        return "not evaluated"
    return "evaluated; the empty prompt of a text-to-image model"


def _print_templates(templates: Sequence[str] | None, average: str) -> None:
    if templates is None:
        print("template: none; names and captions are used as prompts unchanged")
    elif len(templates) == 1:
        print(f"template: {templates[0]}")
    else:
        over = "errors" if average == "error" else "embeddings"
        print(f"templates: {len(templates)}, whose {over} are averaged; the prompts below use the first")
        print(*(f"  {template}" for template in templates), sep="\n")


def print_task(task: Task) -> None:
    """Print the prompt of each class of a task, by default and with each preset."""
    from ..data.prompts import fill_template

    ways = {"prompt": prompts_of(task), **{f"preset {name}": prompts_of(task, name) for name in task.presets}}
    print("label", "class", *ways, sep="\t")
    columns = [fill_template((way.templates or ("{}",))[0], way.names) for way in ways.values()]
    for i, row in enumerate(zip(task.class_names or (), *columns, strict=True)):
        print(i, *row, sep="\t")


def prompts_of(task: Task, preset: str | None = None) -> Prompts:
    """Return the names and the template of a task, for data with the class names of the task."""
    from ..tasks import Prompts

    chosen = None if preset is None else task.presets[preset]
    template = (chosen and chosen.template) or task.template
    return Prompts((chosen and chosen.names) or task.class_names or (), (template,))
