"""Tasks whose images have captions of their own. Sizes and licences are as their keepers state them."""

from __future__ import annotations

from ..caption_sources import open_captions, open_winoground
from .base import CaptionTask, Preset

_ALL = (
    CaptionTask(
        "winoground", "Winoground: 400 pairs of images with captions of the same words", open_winoground,
        "Meta's own, for research: to be accepted on the hub; images are of Getty Images",
        "Thrush et al. 2022, Winoground: probing vision and language models for visio-linguistic compositionality, "
        "CVPR",
        num_images=800,
        takes=("data", "split"),
        presets={"paper": Preset("fixed:1000", accuracy=34.0)},
        checked="on small copies of its schema; never on the data",
        note="Text scores of the paper (table 2): Stable Diffusion 2.0: object 41.8, relation 25.3, both 69.2, all "
        "34.0; OpenCLIP ViT-H/14: 39.0, 26.6, 57.7, 33.0; CLIP ViT-L/14: 27.0, 25.8, 57.7, 28.2.",
    ),
    CaptionTask(
        "captions", "Your own file of images, true and false captions, such as ARO's and SugarCrepe's", open_captions,
        "of the file",
        "ARO: Yuksekgonul et al. 2023, When and why vision-language models behave like bags-of-words, ICLR. "
        "SugarCrepe: Hsieh et al. 2023, Fixing hackable benchmarks for vision-language compositionality, NeurIPS",
        takes=("data", "images", "split", "image_column", "caption_column", "false_column", "tag_column"),
        checked="on small files of the schemas of ARO and SugarCrepe; never on theirs",
        note="Needs --data FILE, and --images FOLDER where the images are not beside it.",
    ),
)  # fmt: skip

CAPTION_TASKS = {task.name: task for task in _ALL}
