"""Select the images of a run, and match the classes of a data set to those of a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from ..data.captioned import CaptionedSource
from ..data.labelled import LabelledSource
from ..denoisers.class_conditional import class_ids
from ..errors import InputError
from ..tasks import Task

Images: TypeAlias = LabelledSource | CaptionedSource


def choose(source: Images, *, limit: int | None = None, subset: Sequence[str] | None = None) -> list[int]:
    """Return the positions of the images to evaluate, ascending.

    Args:
        source: the images.
        limit: number of images, evenly spread because the first ones may all be of one class; all if None.
        subset: ids of the images to evaluate.

    Raises:
        InputError: both were given; the limit is below 1 or above the number of images; an id is unknown.
    """
    if limit is not None and subset is not None:
        raise InputError("give a limit or a subset, not both")
    if limit is not None:
        if not 1 <= limit <= len(source):
            raise InputError(f"the limit must be between 1 and the {len(source)} images of {source.name}; got {limit}")
        return [i * len(source) // limit for i in range(limit)]
    if subset is None:
        return list(range(len(source)))
    position = {id_: i for i, id_ in enumerate(source.ids)}
    unknown = [id_ for id_ in subset if id_ not in position]
    if unknown or not subset:
        what = f"{unknown[0]!r} is not the id" if unknown else "an empty subset holds no id"
        raise InputError(f"{what} of an image of {source.name}; the first are {', '.join(source.ids[:3])}")
    return sorted({position[id_] for id_ in subset})


def choose_captioned(
    source: CaptionedSource, *, limit: int | None = None, subset: Sequence[str] | None = None
) -> list[int]:
    """Return positions as `choose` does, keeping pairs together.

    Raises:
        InputError: as `choose`; for pairs also if the limit is odd, or the subset splits a pair.
    """
    positions = choose(source, limit=limit, subset=subset)
    if not source.paired or (limit is None and subset is None):
        return positions
    if limit is not None:
        if limit % 2:
            raise InputError(f"the images of {source.name} come in pairs: the limit must be even; got {limit}")
        num_pairs, wanted = len(source) // 2, limit // 2
        return [2 * (i * num_pairs // wanted) + k for i in range(wanted) for k in (0, 1)]
    if alone := sorted(set(positions) - {i ^ 1 for i in positions}):
        raise InputError(
            f"the images of {source.name} come in pairs, and the subset has {source.ids[alone[0]]} without "
            f"{source.ids[alone[0] ^ 1]}"
        )
    return positions


def candidates(known: Sequence[str] | None, task: Task | None, source: LabelledSource) -> Sequence[str] | Sequence[int]:
    """Return the classes of a data set as names or indices that a model accepts, in the data set's order.

    Args:
        known: class names of the model; None for a text-to-image model.
        task: task of the images.
        source: the images.

    Raises:
        InputError: the model does not know a class; or it reads text, and the classes are WordNet ids or numbers of
            ImageNet classes.
    """
    names, imagenet_ids = source.class_names, None if task is None else task.imagenet_ids
    of_wordnet = all(re.fullmatch(r"n\d{8}", name) for name in names)
    if known is None:
        if of_wordnet or (imagenet_ids and all(name.isdecimal() for name in names)):
            raise InputError(
                f"the classes of {source.name} are called {', '.join(names[:3])} …, which says nothing to a model that "
                "reads text: give their names in this order, --class-names"
            )
        return names
    if source.prompt_names and [n.lower() for n in source.prompt_names] == [name.lower() for name in known]:
        return range(len(known))  # names could not tell classes apart that share one
    unknown = {name.lower() for name in names} - {name.lower() for name in known}
    if not unknown:  # in whatever order
        return names
    if task is not None and names == task.class_names and list(known) == list(map(str, range(len(names)))):
        return range(len(names))  # trained on the same classes, under numbers
    # ImageNet networks have other names for its classes, but in ImageNet's order, which is not alphabetical.
    if imagenet_ids and len(known) == 1000 and (of_wordnet or list(names) != sorted(names)):
        return imagenet_ids
    unknown -= {synonym.strip().lower() for name in known for synonym in name.split(",")}
    if unknown:
        name = next(name for name in names if name.lower() in unknown)
        raise InputError(
            f"{source.name} has the class {name!r}, which the model does not know: its own are "
            f"{', '.join(known[:12])}{' …' if len(known) > 12 else ''}; other names can be given, --class-names"
        )
    class_ids(names, known)  # raises for a synonym that several classes share
    return names
