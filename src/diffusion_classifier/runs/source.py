"""Open the images that a run evaluated."""

from __future__ import annotations

from pathlib import Path

from ..data.corruptions import Corruption, corrupted
from ..data.labelled import LabelledSource
from ..errors import InputError
from ..tasks import open_task
from .spec import RunSpec


def open_run_source(spec: RunSpec, data: str | None = None, **columns: str | None) -> LabelledSource:
    """Open the images that a run evaluated, with its corruption. Incomplete data is allowed, as it was for the run.

    Args:
        spec: spec of the run.
        data: where the images are; where the run read them if None.
        **columns: split, image_column and label_column of `open_task`.

    Raises:
        InputError: the images are not there.
    """
    was = spec.source.removesuffix(f", {spec.shift}")
    if was != spec.task:  # a built-in task is found by its name, even if a folder here has that name
        data = data or (was if Path(was).exists() else None)
    where = spec.task or data or was
    source = open_task(
        where, data=data if spec.task else None, class_names=spec.class_names, allow_incomplete=True, **columns
    )[1]
    return corrupted(source, Corruption.parse(spec.shift)) if spec.shift else source


def check_source(source: LabelledSource, spec: RunSpec, run: Path) -> None:
    """Raise if the run in the folder `run` evaluated other images than those of `source`.

    Raises:
        InputError: it did.
    """
    if source.fingerprint() != spec.data:
        raise InputError(f"{source.name} is not the data set of {run}, which was {spec.source}: say where that is")
