"""Print the peak memory, in megabytes beyond a loaded model, of scoring IMAGES images among CLASSES classes.

    python benchmarks/memory.py dit|sd CLASSES IMAGES

The models are small and random, so that 10,000 images take a minute. The errors of an image are dropped when it is
done, as in a run that writes them to disk. The `sd` model has prompt encodings of full width, 77 × 1024 numbers each,
and their memory counts. Works on Linux only.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from models import text_to_image, transformer

from diffusion_classifier import Staged
from diffusion_classifier.search import ImageJob, ScoringSettings, score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("family", choices=("dit", "sd"), help="class-conditional or text-to-image model")
parser.add_argument("classes", type=int, help="number of classes")
parser.add_argument("images", type=int, help="number of images")
options = parser.parse_args()


def peak() -> float:
    """Return the peak memory of this process since the last reset, in megabytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def jobs() -> Iterator[ImageJob]:
    size = denoiser.image_size
    for i in range(options.images):
        yield ImageJob(str(i), torch.full((3, size, size), i / options.images), i)


if options.family == "dit":
    denoiser, one = transformer(1, (32, 32), num_attention_heads=2, attention_head_dim=16, num_layers=1)
else:
    unet = {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 1024, "attention_head_dim": 8}
    denoiser, one = text_to_image(1, (32, 32), **unet)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
conditioning = one[torch.zeros(options.classes, dtype=torch.int64)]
for _ in score(denoiser, jobs(), conditioning, ScoringSettings(Staged((1, 2), (5, 1))), batch_size=64):
    pass
print(peak() - before)
