"""A ResNet-18 trained to classify the images of `make train-fashion`, for as many operations as another model took.

    python benchmarks/supervised.py FASHION_MNIST OUT --flops 2e15

Images are mirrored at random and enlarged four times, so that transformers' ResNet, which begins by making them four
times smaller, works at their own resolution. Prints the accuracy on the images held out; `--test` on the test images.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.utils.logging import disable_progress_bar

from diffusion_classifier.metrics import share_interval
from diffusion_classifier.training.data import load_labelled_images
from diffusion_classifier.training.denoising import TrainConfig
from diffusion_classifier.training.loop import batch_rows, fit, generator_of, num_steps, seeded
from diffusion_classifier.zoo import FASHION

HELD_OUT, SEED = 5000, 0  # of `make train-fashion`


def enlarged(images: torch.Tensor) -> torch.Tensor:
    """Pixels in [-1, 1], four times as many along an edge."""
    return torch.nn.functional.interpolate(images.float() / 127.5 - 1, scale_factor=4, mode="bilinear")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--flops", type=float, required=True)
parser.add_argument("--test", action="store_true")
options = parser.parse_args()

training, validation = load_labelled_images(options.data, class_names=FASHION).split(HELD_OUT, SEED)
with seeded(0):
    network = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
        )
    )
with FlopCounterMode(display=False) as counter, torch.no_grad():
    network.eval()(enlarged(training.images[:1]))
each = 3 * counter.get_total_flops()  # a step backwards is counted as two forwards, as in late.py
config = TrainConfig(
    epochs=options.flops / each / len(training), batch_size=64, optimizer="muon", learning_rate=2e-3, warmup=200
)
network.train()


def loss_at(step: int) -> torch.Tensor:
    """Cross-entropy of a batch."""
    rows = batch_rows(step, len(training), config.batch_size, SEED)
    mirrored = torch.rand(len(rows), generator=generator_of(SEED, 1, step)) < 0.5
    images = training.images[rows]
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    with torch.autocast("cpu", torch.bfloat16):
        output = network(enlarged(images))
    return torch.nn.functional.cross_entropy(output.logits.float(), training.labels[rows])


disable_progress_bar()
start = time.time()
ema = fit(
    network, loss_at, config, num_steps(config, len(training)), options.out / "checkpoint",
    {"config": asdict(config), "data": training.fingerprint(), "class_names": list(FASHION)}, defaults={},
    save=lambda _: None, outer=("embedder.embedder.", "classifier."),
)  # fmt: skip
seconds = time.time() - start
network.load_state_dict(ema, strict=False)  # statistics of batches are no parameters
network.eval().save_pretrained(options.out)
result = {"epochs": config.epochs, "seconds": seconds, "flops": counter.get_total_flops()}
sets = {"validation": validation}
if options.test:
    sets["test"] = load_labelled_images(options.data, split="test", class_names=FASHION)
for name, images in sets.items():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        chosen = torch.cat([network(enlarged(part)).logits.argmax(1) for part in images.images.split(250)])
    result[name] = share_interval(chosen == images.labels)
print(json.dumps(result))
