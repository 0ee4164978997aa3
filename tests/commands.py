"""What tests of the command line share."""

import numpy as np
from PIL import Image

TRAIN = ["--channels", "8", "--layers", "1", "--batch-size", "8", "--warmup", "1"]


def save(path, grey, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-30, 31, (8, 8))
    Image.fromarray((grey + noise).astype(np.uint8)).save(path)


def error(err):
    """The one sentence that is printed for a mistake."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")
