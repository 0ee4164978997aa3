"""Attacks that know the model, and attacks that were made for another one. Needs the extra 'adversarial'.

    python experiments/adversarial.py FASHION_MNIST OUT.json --diffusion fashion fashion-fast --supervised resnet/

Projected gradient descent (Madry et al. 2018; the Adversarial Robustness Toolbox) on each model, of ℓ∞ and ℓ2 balls. A
diffusion model is attacked through `DifferentiableScores`, with new draws at each step, so that the attack climbs their
expectation (Athalye et al. 2018). Images are then rounded to 8 bits, as a file would hold them, and answered by every
model as it answers always: with its own strategy and noise. So each attack is measured on the model that it knows and,
transferred (if of many steps), on the others.

A gradient that misleads looks like robustness. What would give it away (Athalye et al. 2018, Carlini et al. 2019): a
large ball that does not bring accuracy down to chance; a single step that does as well as many; an attack made for
another model that does better than the one that knows this one; random noise that does as well. All are in the result.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from common import chosen_by, load, pictures, spread

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis import DifferentiableScores
from diffusion_classifier.baselines import Supervised
from diffusion_classifier.data import FASHION
from diffusion_classifier.metrics import share_interval
from diffusion_classifier.search import scale_of


class Logits(torch.nn.Module):
    """Of a supervised network, for images (B, 1, S, S) in [0, 1]."""

    def __init__(self, source: str) -> None:
        super().__init__()
        loaded = Supervised.from_pretrained(source)
        self.network, self.edge = loaded.model, loaded.image_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, K)."""
        x = torch.nn.functional.interpolate(x.expand(-1, 3, -1, -1), size=self.edge, mode="bilinear")
        logits: torch.Tensor = self.network(pixel_values=x * 2 - 1).logits
        return logits


class Margin(torch.nn.Module):
    """By how much the best wrong class is above the true one: unlike the cross-entropy it has a gradient where the
    posterior is 1 in float32, as that of a diffusion model often is (Carlini and Wagner 2017).
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean over (B, K)."""
        true = torch.nn.functional.one_hot(labels.argmax(1) if labels.ndim == 2 else labels, logits.shape[1]).bool()
        return (logits.masked_fill(true, -torch.inf).amax(1) - logits[true]).mean()


def of_diffusion(source: str, draws: int) -> DifferentiableScores:
    """Its scores, at the scale at which it answers."""
    classifier = DiffusionClassifier.from_pretrained(source.partition("@")[0], dtype="float32")
    settings = classifier.settings_for(FASHION)
    scale = scale_of(classifier.scorer.num_dimensions, settings.reduction, settings.temperature)
    return DifferentiableScores(
        classifier.denoiser,
        FASHION,
        draws,
        scale,
        loss=settings.loss,
        draws=settings.draws,
        weights=settings.weights,
        fresh=True,
    )


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--diffusion", nargs="*", default=[])
parser.add_argument("--supervised", nargs="*", default=[])
parser.add_argument("--images", type=int, default=200)
parser.add_argument("--draws", type=int, default=8, help="of a step of the attack")
parser.add_argument("--steps", type=int, nargs="+", default=[1, 20])
parser.add_argument("--batch", type=int, default=20)
parser.add_argument("--linf", type=float, nargs="*", default=[2, 8, 64], help="radii, of 255")
parser.add_argument("--l2", type=float, nargs="*", default=[0.25, 1, 8], help="radii")
options = parser.parse_args()

images = spread(load(options.data)[1], options.images)
clean = np.stack(pictures(images))[:, None].astype(np.float32) / 255
names = [*options.diffusion, *options.supervised]
balls = [(np.inf, eps / 255) for eps in options.linf] + [(2, eps) for eps in options.l2]
results: list[dict[str, object]] = []


def judge(attack: str, norm: float, eps: float, steps: int, changed: np.ndarray, models: Sequence[str]) -> None:
    """These models on these images."""
    seen = [np.round(image[0] * 255).astype(np.uint8) for image in changed]
    for name in models:
        row = {"attack on": attack, "norm": str(norm), "eps": round(eps, 4), "steps": steps, "model": name}
        results.append(row | {"accuracy": share_interval(chosen_by(name, seen) == images.labels)})
        print(json.dumps(results[-1]), flush=True)
    options.out.write_text(json.dumps(results, indent=1))


judge("nothing", 0, 0, 0, clean, names)
rng = np.random.default_rng(0)
for norm, eps in balls:
    noise = rng.choice([-1.0, 1.0], clean.shape) if norm == np.inf else rng.normal(size=clean.shape)
    size = 1.0 if norm == np.inf else np.sqrt((noise**2).sum((1, 2, 3), keepdims=True))
    judge("noise", norm, eps, 0, np.clip(clean + eps * noise / size, 0, 1).astype(np.float32), names)
for attacked in names:
    module = Logits(attacked) if attacked in options.supervised else of_diffusion(attacked, options.draws)
    estimator = PyTorchClassifier(
        module, Margin(), clean.shape[1:], len(FASHION), clip_values=(0.0, 1.0), device_type="cpu"
    )
    for norm, eps in balls:
        for steps in options.steps:
            attack = ProjectedGradientDescent(
                estimator, norm=norm, eps=eps, eps_step=eps if steps == 1 else 2.5 * eps / steps, max_iter=steps,
                batch_size=options.batch, verbose=False,
            )  # fmt: skip
            changed = attack.generate(clean, images.labels.numpy())
            judge(attacked, norm, eps, steps, changed, [attacked] if steps == 1 else names)
