"""Distil a run into a student: a network that predicts the posteriors of the run's model in one pass.

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


def teaching_images(runs: Mapping[Path, LabelledSource], size: int | None = None) -> TrainingImages:
    """Return the images of runs with their posteriors. If several runs have an image, posteriors are averaged.

    Args:
        runs: folder of a run → images of the run.
        size: height and width of the images. Default: their own.

    Raises:
        InputError: a run is of captions, corrupted images, other classes than the first run or other images than
            given, or has no results; as `decode`.
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
        key = f"{spec.source} {spec.data}"  # the fingerprint covers the names of images, and not their content
        sources[key] = source
        rows = table_to_rows(with_status(read_rows(folder, ["id", "posterior", "status"]), "done"))
        if not rows:
            raise InputError(f"no image of {folder} is done, from which a student could learn")
        for row in rows:
            found.setdefault((key, row.id), []).append(row.posterior or ())
    images, posteriors = [], []
    for key, source in sources.items():
        rows_of = [i for i, id_ in enumerate(source.ids) if (key, id_) in found]
        images.append(decode(source.take(rows_of), size)[0])
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
    """Write a model card that states the student's teachers and its use.

    Args:
        out: folder of the student.
        config: settings of its training.
        specs: specs of the runs that it was trained on.
        images: training images.
        agreement: share of held-out images on which the student agrees with its teachers. None without such images.

    Raises:
        InputError: the card cannot be written.
    """
    teachers = "\n".join(
        f"- `{spec.model}`, {_kind(spec)}, on {spec.num_images:,} images of `{spec.source}`" for spec in specs
    )
    edge = images.images.shape[-1]
    held_out = "" if agreement is None else f" On held-out images, it agrees with them in {agreement:.1%}."
    about = ModelCardData(
        library_name="transformers", pipeline_tag="image-classification", tags=["distillation", "diffusion-classifier"]
    )
    text = f"""---
{about.to_yaml()}
---

# Student of a diffusion classifier

A {config.architecture} that classifies images as {", ".join(specs[0].class_names)} in one pass.
It was trained on {len(images):,} images, with the posteriors of:

{teachers}

No labels were used.{held_out}

```python
from PIL import Image, ImageOps
from transformers import pipeline

image = ImageOps.fit(Image.open("photo.jpg").convert("RGB"), ({edge}, {edge}))  # the size of its training images
print(pipeline("image-classification", model="{out.name}")(image))
```

Trained by `diffusion-classifier distill` for {num_steps(config, len(images)):,} steps of {config.batch_size} images,
with seed {config.seed}.
"""
    with writing(out):
        ModelCard(text).save(out / "README.md")
