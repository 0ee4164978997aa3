"""The images that `make train-fashion` held out, by which every choice is made: their ids, one a line.

python tools/fashion_held_out.py 1000 > build/held-out.txt
diffusion-classifier evaluate fashion-mnist --data /usr/share/datasets/fashion-mnist --split train --subset
build/held-out.txt --model build/fashion --strategy fixed:64 --store-errors --out build/validation
"""

import sys

from diffusion_classifier.data.scenes import HELD_OUT
from diffusion_classifier.training.images import load_labelled_images

data = load_labelled_images(sys.argv[2] if len(sys.argv) > 2 else "/usr/share/datasets/fashion-mnist")
print("\n".join(map(str, data.held_out(HELD_OUT, seed=0).tolist()[: int(sys.argv[1])])))
