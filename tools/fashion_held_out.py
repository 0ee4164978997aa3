"""Print the ids of the images that `make train-fashion` held out to choose settings, one per line.

python tools/fashion_held_out.py 1000 > build/held-out.txt
diffusion-classifier evaluate fashion-mnist --data /usr/share/datasets/fashion-mnist --split train --subset
build/held-out.txt --model build/fashion --strategy fixed:64 --store-errors --out build/validation
"""

import argparse

from diffusion_classifier.data import HELD_OUT, held_out_rows
from diffusion_classifier.training import load_labelled_images

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("number", type=int, help="number of ids to print")
parser.add_argument(
    "data", nargs="?", default="/usr/share/datasets/fashion-mnist", help="folder (default: %(default)s)"
)
options = parser.parse_args()
data = load_labelled_images(options.data)
print("\n".join(map(str, held_out_rows(len(data), HELD_OUT, seed=0).tolist()[: options.number])))
