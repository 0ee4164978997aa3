"""Compare the accuracy of generative and discriminative models under corruptions.

    python experiments/disguise.py FASHION_MNIST OUT.json fashion fashion-fast resnet/

The images are held out by `make train-fashion`. No model was trained with the corruptions. A model is a FOLDER with its
own settings, FOLDER@STRATEGY such as FOLDER@fixed:8, or a folder of `baseline supervised`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from common import evenly_spaced, load, pictures, predict
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

held_out = evenly_spaced(load(options.data)[1], options.images)
results: dict[str, dict[str, Interval]] = {}
for corruption in [None, *(Corruption(name, severity) for name in CORRUPTIONS for severity in options.severities)]:
    images = pictures(held_out)
    if corruption is not None:
        images = [np.asarray(corruption(Image.fromarray(image), str(i))) for i, image in enumerate(images)]
    results[str(corruption)] = {m: share_interval(predict(m, images) == held_out.labels) for m in options.models}
    print(corruption, json.dumps(results[str(corruption)]), flush=True)
options.out.write_text(json.dumps(results, indent=1))
