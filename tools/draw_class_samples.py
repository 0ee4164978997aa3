"""Draw a grid of images of each class from class-conditional models, all from the same noise samples.

python tools/draw_class_samples.py samples.png fashion fashion-fast
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from diffusion_classifier import load_denoiser
from diffusion_classifier.denoisers import draw_images

EACH, EDGE, LINE = 3, 84, 14

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path, help="image file to write")
parser.add_argument("models", nargs="+", help="bundled models, or folders")
options = parser.parse_args()
models = options.models
names = list(load_denoiser(models[0]).class_names or ())
height = EACH * EDGE + LINE
grid = Image.new("L", (len(names) * EDGE, len(models) * height), 255)
write = ImageDraw.Draw(grid)
for i, model in enumerate(models):
    write.text((2, i * height + 1), model, fill=0)
    drawn = draw_images(load_denoiser(model), names * EACH, [s for s in range(EACH) for _ in names])
    for n, picture in enumerate(drawn):
        row, column = divmod(n, len(names))
        grid.paste(picture.convert("L").resize((EDGE, EDGE)), (column * EDGE, i * height + LINE + row * EDGE))
grid.save(options.out, optimize=True)
