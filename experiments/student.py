"""A one-pass network taught by a diffusion classifier's answers: how many unlabelled images does it need?

    python experiments/student.py FASHION_MNIST OUT    # trains for equal operations; resumes

The images are those that `make train-fashion` holds out. The teachers were not trained on them, though where they look
was chosen by the labels of 2,000 of them; their posteriors stand for the labels. Beside them the same network, taught
by true labels. Measured on the test images, teachers included.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

from common import answered, chosen_by, pictures, spread, train_for

from diffusion_classifier.data import FASHION, HELD_OUT, held_out_rows
from diffusion_classifier.runs import summarize
from diffusion_classifier.tasks import open_task
from diffusion_classifier.training import SupervisedConfig, load_labelled_images, teaching_images

TIMED = 200
"""Images by which seconds are measured."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--teachers", nargs="+", default=["fashion", "fashion-fast"])
parser.add_argument("--flops", type=float, default=5e13, help="of each training")
parser.add_argument("--sizes", type=int, nargs="+", default=(500, 1500, 5000))
parser.add_argument("--images", type=int, help="of the test set; all if not given")
options = parser.parse_args()

task, tested = open_task("fashion-mnist", data=options.data)
every = load_labelled_images(options.data, class_names=FASHION)
rows = held_out_rows(len(every), HELD_OUT, seed=0)
unlabelled = open_task("fashion-mnist", data=options.data, split="train")[1].take(rows.tolist())


def told(name: str, model: str) -> None:
    """Accuracy on the test images, and seconds an image of many."""
    found = summarize(answered(model, tested, options.out / "runs" / name, options.images, task=task))
    some = pictures(spread(every, TIMED))
    chosen_by(model, some)  # batches are measured, and Python compiles
    started = perf_counter()
    chosen_by(model, some)
    seconds = (perf_counter() - started) / TIMED
    print(json.dumps({"model": name, "accuracy": found.accuracy, "seconds": seconds}), flush=True)


config = SupervisedConfig(augment="flips", warmup=20)
labels = {"true labels": every.take(rows)}
for teacher in options.teachers:
    name = Path(teacher).name
    run = answered(teacher, unlabelled, options.out / f"posteriors-{name}", task=task)
    labels[name] = teaching_images({run: unlabelled}, None)
    told(name, teacher)
for size in options.sizes:
    for taught_by, images in labels.items():
        folder = options.out / f"taught-by-{taught_by.replace(' ', '-')}-{size}"
        train_for(spread(images, size), config, options.flops, folder)
        told(folder.name, str(folder))
