"""A student: a network that answers in one pass what a run's teacher answered.

Shape legend: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData

from ..data.labelled import LabelledSource
from ..errors import InputError
from ..runs.row import table_to_rows
from ..runs.source import check_source
from ..runs.spec import DIFFUSION, RunSpec, check_class_run, read_spec
from ..runs.store import read_rows, with_status
from .images import TrainingImages, decode
from .loop import num_steps, writing
from .supervised import SupervisedConfig


def taught(runs: Mapping[Path, LabelledSource], size: int | None = None) -> TrainingImages:
    """Images of runs with the posteriors that were found; where several runs have an image, with their mean.

    Args:
        runs: folder → the images that it is of.
        size: height and width of the images; their own if None.

    Raises:
        InputError: runs of captions, under a shift, over other classes than the first, without answers, or of other
            images than these; as `decode`.
    """
    classes: tuple[str, ...] = ()
    found: dict[tuple[str, str], list[Sequence[float]]] = {}
    sources: dict[str, LabelledSource] = {}
    for folder, source in runs.items():
        spec = read_spec(folder)
        check_class_run(folder, spec, "a student")
        classes = classes or spec.class_names
        if spec.class_names != classes:
            raise InputError(f"{folder} is over other classes than the run before it, or in another order")
        if spec.shift:
            raise InputError(f"the images of {folder} were changed by {spec.shift}: a student is taught plain ones")
        check_source(source, spec, folder)
        key = f"{spec.source} {spec.data}"  # the fingerprint knows names of images, and not what they show
        sources[key] = source
        rows = table_to_rows(with_status(read_rows(folder, ["id", "posterior", "status"]), "done"))
        if not rows:
            raise InputError(f"no image of {folder} is done, from which a student could learn")
        for row in rows:
            found.setdefault((key, row.id), []).append(row.posterior or ())
    images, posteriors = [], []
    for key, source in sources.items():
        rows_of = [i for i, id_ in enumerate(source.ids) if (key, id_) in found]
        images.append(decode(source.take(rows_of), size))
        posteriors += [np.mean(found[key, source.ids[i]], axis=0) for i in rows_of]
    if len({tensor.shape[1:] for tensor in images}) > 1:
        raise InputError("the images of the runs differ in size or colours: give a size, to which all are brought")
    targets = torch.from_numpy(np.stack(posteriors)).float()
    return TrainingImages(torch.cat(images), targets.argmax(1), classes, targets)


def _kind(spec: RunSpec) -> str:
    return f"strategy `{spec.strategy}`" if spec.model_kind == DIFFUSION else f"{spec.model_kind} model"


def write_card(
    out: Path, config: SupervisedConfig, specs: Sequence[RunSpec], images: TrainingImages, agreement: float | None
) -> None:
    """A model card that says who taught what, and how to use it.

    Args:
        out: folder of the student.
        config: how it was trained.
        specs: of the runs that it learned from.
        images: those that it learned from.
        agreement: share of held-out images for which it answers as its teachers; None if there were none.

    Raises:
        InputError: it cannot be written.
    """
    teachers = "\n".join(
        f"- `{spec.model}`, {_kind(spec)}, on {spec.num_images:,} images of `{spec.source}`" for spec in specs
    )
    edge = images.images.shape[-1]
    held_out = "" if agreement is None else f" On held-out ones it answers as they do in {agreement:.1%}."
    about = ModelCardData(
        library_name="transformers", pipeline_tag="image-classification", tags=["distillation", "diffusion-classifier"]
    )
    text = f"""---
{about.to_yaml()}
---

# A student of a diffusion classifier

A {config.architecture} that tells {", ".join(specs[0].class_names)} apart in one pass. It learned from {len(images):,}
images the posteriors of:

{teachers}

No label was learned from.{held_out}

```python
from PIL import Image, ImageOps
from transformers import pipeline

image = ImageOps.fit(Image.open("photo.jpg").convert("RGB"), ({edge}, {edge}))  # as small as what it learned from
print(pipeline("image-classification", model="{out.name}")(image))
```

Made by `diffusion-classifier distill`, {num_steps(config, len(images)):,} steps of {config.batch_size} images, seed
{config.seed}.
"""
    with writing(out):
        ModelCard(text).save(out / "README.md")
