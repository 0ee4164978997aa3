"""Peak memory, in megabytes, that scoring so many images among so many classes takes beyond a loaded model.

    python benchmarks/memory.py dit|sd CLASSES IMAGES

The models are small and random, so that ten thousand images take a minute; the errors of an image are dropped when it
is done, as in a run that writes them to disk. That of the Stable Diffusion kind has prompts of full width: their
encodings, 77 × 1024 numbers each, are part of what is measured. Linux alone.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from models import text_to_image, transformer

from diffusion_classifier import Staged
from diffusion_classifier.search import ImageJob, ScoringSettings, score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("family", choices=("dit", "sd"))
parser.add_argument("classes", type=int)
parser.add_argument("images", type=int)
options = parser.parse_args()


def peak() -> float:
    """Of the process since the mark was last put back."""
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
