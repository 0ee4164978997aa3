"""Distil diffusion classifiers into a one-pass network, by number of unlabelled images.

    python experiments/student.py FASHION_MNIST OUT    # trains for equal FLOPs; resumes

The images are held out by `make train-fashion`. The teachers were not trained on them, but 2,000 of their labels
were used to select the teachers' timesteps. Students are trained on the teachers' posteriors; a baseline is trained on
the true labels. Teachers and students are evaluated on the test images.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

from common import evenly_spaced, pictures, predict, run_evaluation, train_for

from diffusion_classifier.data import FASHION, HELD_OUT, held_out_rows
from diffusion_classifier.runs import summarize
from diffusion_classifier.tasks import open_task
from diffusion_classifier.training import SupervisedConfig, load_labelled_images, teaching_images

TIMED = 200
"""Number of images for timing."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--teachers", nargs="+", default=["fashion", "fashion-fast"])
parser.add_argument("--flops", type=float, default=5e13, help="training FLOPs per network (default: %(default)s)")
parser.add_argument("--sizes", type=int, nargs="+", default=(500, 1500, 5000))
parser.add_argument("--images", type=int, help="test images (default: all)")
options = parser.parse_args()

task, tested = open_task("fashion-mnist", data=options.data)
every = load_labelled_images(options.data, class_names=FASHION)
rows = held_out_rows(len(every), HELD_OUT, seed=0)
unlabelled = open_task("fashion-mnist", data=options.data, split="train")[1].take(rows.tolist())


def report_accuracy(name: str, model: str) -> None:
    """Print accuracy on the test images and seconds per image."""
    summary = summarize(run_evaluation(model, tested, options.out / "runs" / name, options.images, task=task))
    some = pictures(evenly_spaced(every, TIMED))
    predict(model, some)  # warm-up: batch sizes are tuned and code is compiled
    started = perf_counter()
    predict(model, some)
    seconds = (perf_counter() - started) / TIMED
    print(json.dumps({"model": name, "accuracy": summary.accuracy, "seconds": seconds}), flush=True)


config = SupervisedConfig(augment="flips", warmup=20)
labels = {"true labels": every.take(rows)}
for teacher in options.teachers:
    name = Path(teacher).name
    run = run_evaluation(teacher, unlabelled, options.out / f"posteriors-{name}", task=task)
    labels[name] = teaching_images({run: unlabelled}, None)
    report_accuracy(name, teacher)
for size in options.sizes:
    for source, images in labels.items():
        folder = options.out / f"taught-by-{source.replace(' ', '-')}-{size}"
        train_for(evenly_spaced(images, size), config, options.flops, folder)
        report_accuracy(folder.name, str(folder))
