"""Tasks whose images have captions of their own. Sizes and licences are those that the maintainers state."""

from __future__ import annotations

from collections.abc import Callable

from ..data.captioned import CaptionedSource, open_captioned, open_winoground
from .scene_tasks import open_binding, open_counting, open_pairs, open_scene_winoground, open_spatial
from .task import CaptionTask, Preset


def _scenes(name: str, title: str, open_: Callable[..., CaptionedSource], num_images: int) -> CaptionTask:
    return CaptionTask(
        name=name,
        title=title,
        open=open_,
        licence="MIT",
        citation="Photographs of Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine "
        "learning algorithms",
        num_images=num_images,
        takes=("data", "split"),
        note="Made of the 1,000 test images in the package; of all 10,000 with --data FOLDER of the IDX files; of "
        "5,000 that the bundled models were not trained on with --split validation as well.",
    )


_ALL = (
    CaptionTask(
        name="winoground",
        title="Winoground",
        open=open_winoground,
        licence="Meta's own, for research: to be accepted on the hub; images are of Getty Images",
        citation="Thrush et al. 2022, Winoground: probing vision and language models for visio-linguistic "
        "compositionality, CVPR",
        num_images=800,
        takes=("data", "split", "allow_incomplete"),
        presets={"paper": Preset("fixed:1000", accuracy=34.0)},
        checked="on small copies of its schema; never on the data",
        note="400 pairs of images with captions of the same words. Text scores of the paper (table 2): Stable "
        "Diffusion 2.0: object 41.8, relation 25.3, both 69.2, all 34.0; OpenCLIP ViT-H/14: 39.0, 26.6, 57.7, 33.0; "
        "CLIP ViT-L/14: 27.0, 25.8, 57.7, 28.2.",
    ),
    CaptionTask(
        name="captions",
        title="Your own captions, true and false",
        open=open_captioned,
        licence="of the file",
        citation="ARO: Yuksekgonul et al. 2023, When and why vision-language models behave like bags-of-words, ICLR. "
        "SugarCrepe: Hsieh et al. 2023, Fixing hackable benchmarks for vision-language compositionality, NeurIPS",
        takes=(
            "data",
            "images",
            "split",
            "image_column",
            "caption_column",
            "false_column",
            "tag_column",
            "allow_incomplete",
        ),
        checked="on small files of the schemas of ARO and SugarCrepe; never on theirs",
        note="Reads files as those of ARO and SugarCrepe. Needs --data FILE, and --images FOLDER where the images are "
        "not beside it.",
    ),
    _scenes("scenes-winoground", "Scenes: things and attributes exchanged", open_scene_winoground, 800),
    _scenes("scenes-pairs", "Scenes: things seen together, and never", open_pairs, 800),
    _scenes("scenes-binding", "Scenes: attributes exchanged, by sort", open_binding, 800),
    _scenes("scenes-counting", "Scenes: how many of a kind?", open_counting, 400),
    _scenes("scenes-spatial", "Scenes: how do two things lie?", open_spatial, 400),
)

CAPTION_TASKS = {task.name: task for task in _ALL}
