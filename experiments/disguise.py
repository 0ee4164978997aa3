"""Is a diffusion model that was trained to classify a discriminative classifier in disguise? Accuracy under shift.

    python experiments/disguise.py FASHION_MNIST OUT.json fashion fashion-fast resnet/

On images that `make train-fashion` holds out, as they are and changed as no model was trained with (`shifts`). A model
is read as its folder says, or as in FOLDER@fixed:8; a folder of `baseline supervised` in one pass.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from common import chosen_by, load, pictures, spread
from PIL import Image

from diffusion_classifier.data import CORRUPTIONS, Corruption
from diffusion_classifier.metrics import Interval, share_interval

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("models", nargs="+")
parser.add_argument("--images", type=int, default=1000)
parser.add_argument("--severities", type=int, nargs="+", default=[3])
options = parser.parse_args()

held_out = spread(load(options.data)[1], options.images)
results: dict[str, dict[str, Interval]] = {}
for shift in [None, *(Corruption(name, severity) for name in CORRUPTIONS for severity in options.severities)]:
    images = pictures(held_out)
    if shift is not None:
        images = [np.asarray(shift(Image.fromarray(image), str(i))) for i, image in enumerate(images)]
    results[str(shift)] = {m: share_interval(chosen_by(m, images) == held_out.labels) for m in options.models}
    print(shift, json.dumps(results[str(shift)]), flush=True)
options.out.write_text(json.dumps(results, indent=1))
