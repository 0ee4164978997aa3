"""Full error tables of the bundled model, for `calibrate` and `frontier`.

    python tools/fashion_tables.py --images 1000 --draws 64 --out build/validation.parquet
    python tools/fashion_tables.py --split test --images 500 --draws 250 --out build/test.parquet

The validation split is the one that `make train-fashion` held out: choices are made on it alone.
"""

import argparse
from pathlib import Path

from rich.progress import track

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.tables import table_writer
from diffusion_classifier.training.data import load_labelled_images

HELD_OUT, SEED = 5000, 0  # of `make train-fashion`

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", nargs="?", default="fashion")
parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
parser.add_argument("--split", choices=["validation", "test"], default="validation")
parser.add_argument("--first", type=int, default=0, help="image to begin with")
parser.add_argument("--images", type=int, default=1000)
parser.add_argument("--draws", type=int, default=64)
parser.add_argument("--loss")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--compile", action="store_true")
options = parser.parse_args()

classifier = DiffusionClassifier.from_pretrained(options.model, compile_network=options.compile)
names = list(classifier.denoiser.class_names or ())
data = load_labelled_images(options.data, split="test" if options.split == "test" else "train", class_names=names)
if options.split == "validation":
    _, data = data.split(HELD_OUT, SEED)
rows = range(options.first, options.first + options.images)
settings = {"strategy": f"fixed:{options.draws}", "loss": options.loss}
about = {
    "model": options.model,
    "num_dimensions": classifier.num_dimensions,
    "num_timesteps": classifier.denoiser.schedule.num_timesteps,
    **classifier.reading(names, **settings).as_dict(),
}
with table_writer(options.out, names, about) as write:
    for result in track(classifier.stream((data.images[i] for i in rows), **settings), total=len(rows)):
        write(result, names[data.labels[rows[int(result.name.removeprefix("image "))]]])
