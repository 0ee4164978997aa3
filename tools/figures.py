"""Draw docs/figures/: counterparts of the paper's figures, and other figures, with bundled models and images.

    python tools/figures.py docs/figures

The script runs the commands of the package and prints each of them.
"""

import argparse
import shlex
import subprocess
import tempfile
from pathlib import Path

from diffusion_classifier.data import load_image, load_sample
from diffusion_classifier.tasks import open_scene_winoground

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path, help="folder to write to")
OUT: Path = parser.parse_args().out


def call(line: str) -> None:
    """Print a command and run it."""
    print(f"$ diffusion-classifier {line}", flush=True)
    subprocess.run(["diffusion-classifier", *shlex.split(line)], check=True, stdout=subprocess.DEVNULL)


OUT.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as folder:
    shirt, sneaker, scene, run = (Path(folder) / name for name in ("shirt.png", "sneaker.png", "scene.png", "run"))
    samples = {sample.label: sample.image for sample in reversed(load_sample())}
    samples["Shirt"].save(shirt)
    samples["Sneaker"].save(sneaker)
    world = open_scene_winoground()
    load_image(world.read(200)).image.save(scene)
    caption = world.captions[200][world.truth[200]]
    call(f"figure errors {shirt} --labels 'Shirt,T-shirt/top' -o {OUT}/errors.png")
    call(f"figure race {shirt} --draws 200 -o {OUT}/race.png")
    call(f"figure where {sneaker} --labels 'Sneaker,Ankle boot' --draws 200 -o {OUT}/where.png")
    call(f"figure words {scene} --prompt {shlex.quote(caption)} --draws 200 -o {OUT}/words.png")
    call(f"invert {shirt} --labels 'Shirt,T-shirt/top,Trouser,Bag' --figure {OUT}/inversion.png")
    call(f"evaluate fashion-sample --strategy fixed:64 --store-errors --limit 300 --out {run}")
    for kind in ("times", "reliability", "confusion", "confused"):
        call(f"figure {kind} {run} -o {OUT}/{kind}.png")
    runs = [run]
    for times in ("0", "500", "475,500,525", "0,500,999"):
        runs.append(run.with_name(times))
        asked = f"--strategy fixed:32 --timesteps {times} --store-errors --limit 300"
        call(f"evaluate fashion-sample {asked} --out {runs[-1]}")
    call(f"figure scaling {' '.join(map(str, runs))} -o {OUT}/scaling.png")
    call(f"frontier {run} --figure {OUT}/strategies.png")
