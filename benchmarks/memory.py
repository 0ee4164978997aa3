"""Peak memory, in megabytes, that scoring so many images among so many classes takes beyond a loaded model.

    python benchmarks/memory.py CLASSES IMAGES

The model is small and random, so that ten thousand images take a minute; the errors of an image are dropped when it
is done, as in a run that writes them to disk.
"""

import resource
import sys
from collections.abc import Iterator

import torch
from models import transformer

from diffusion_classifier import Staged
from diffusion_classifier.scoring import Job, score

num_classes, num_images = map(int, sys.argv[1:])
denoiser, conditioning = transformer(num_classes, (32, 32), num_attention_heads=2, attention_head_dim=16, num_layers=1)


def jobs() -> Iterator[Job]:
    size = denoiser.image_size
    for i in range(num_images):
        yield Job(str(i), torch.full((3, size, size), i / num_images), i)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


before = peak()
for _ in score(denoiser, jobs(), conditioning, Staged((1, 2), (5, 1)), batch_size=64):
    pass
print(peak() - before)
