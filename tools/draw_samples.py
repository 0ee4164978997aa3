"""Draw a grid of images of captions from a text-to-image model.

python tools/draw_samples.py build/scenes build/samples.png
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw

CAPTIONS = (
    "a sneaker", "a bag", "a dress", "a pullover", "a boot", "a pair of trousers",
    "a small dark bag", "a bright coat", "an upside-down shirt", "a large sandal", "two bags", "four sneakers",
    "a sneaker left of a bag", "a bag left of a sneaker", "a dress above a boot", "a boot above a dress",
    "a dark coat beside a bright shirt", "a bright coat beside a dark shirt",
    "a t-shirt left of a sneaker", "a pair of trousers above a bag", "a pullover beside a sandal",
    "a dark bag", "a small sneaker", "an upside-down boot",
)  # fmt: skip
"""Captions to draw. The last six have pairs and attributes that no training scene has."""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", type=Path, help="folder of the model")
parser.add_argument("out", type=Path, help="image file to write")
parser.add_argument("--steps", type=int, default=50, help="sampling steps (default: %(default)s)")
parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="seed of the first image (default: %(default)s)")
parser.add_argument("--columns", type=int, default=6, help="columns of the grid (default: %(default)s)")
options = parser.parse_args()

pipeline = StableDiffusionPipeline.from_pretrained(options.model, safety_checker=None, dtype=torch.float32)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
images = pipeline(
    list(CAPTIONS),
    num_inference_steps=options.steps,
    guidance_scale=options.guidance,
    generator=[torch.Generator().manual_seed(options.seed + i) for i in range(len(CAPTIONS))],
).images
edge, line = 168, 14
height = edge + 3 * line
grid = Image.new("RGB", (options.columns * edge, -(-len(images) // options.columns) * height), "white")
draw = ImageDraw.Draw(grid)
for i, (image, caption) in enumerate(zip(images, CAPTIONS, strict=True)):
    x, y = i % options.columns * edge, i // options.columns * height
    grid.paste(image.resize((edge - 4, edge - 4), Image.Resampling.NEAREST), (x, y))
    words, lines = caption.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 26:
            lines.append("")
        lines[-1] += f"{word} "
    for j, text in enumerate(lines):
        draw.text((x + 2, y + edge - 2 + j * line), text, "black")
grid.save(options.out)
