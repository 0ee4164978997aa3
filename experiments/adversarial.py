"""Measure white-box and transferred adversarial attacks. Requires the extra 'adversarial'.

    python experiments/adversarial.py FASHION_MNIST OUT.json --diffusion fashion fashion-fast --supervised resnet/

Each model is attacked by projected gradient descent (Madry et al. 2018; Adversarial Robustness Toolbox) in ℓ∞ and ℓ2
balls. Attacks on a diffusion model use `DifferentiableScores` with new draws in each step, and so maximise the
expectation (Athalye et al. 2018). The images are rounded to 8 bits, as in a file. Each model classifies them with its
default strategy and noise. Attacks of several steps are also transferred to the other models.

Obfuscated gradients look like robustness. The results cover four signs of them (Athalye et al. 2018, Carlini et al.
2019):

- A large ball does not reduce accuracy to chance.
- A single step is as strong as many.
- A transferred attack is stronger than the white-box attack.
- Random noise is as strong as the attack.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from common import evenly_spaced, load, pictures, predict

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis import DifferentiableScores
from diffusion_classifier.baselines import Supervised
from diffusion_classifier.data import FASHION
from diffusion_classifier.metrics import share_interval
from diffusion_classifier.search import scale_of


class Logits(torch.nn.Module):
    """Logits of a supervised network for images (B, 1, S, S) in [0, 1]."""

    def __init__(self, source: str) -> None:
        super().__init__()
        loaded = Supervised.from_pretrained(source)
        self.network, self.edge = loaded.model, loaded.image_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits (B, K)."""
        x = torch.nn.functional.interpolate(x.expand(-1, 3, -1, -1), size=self.edge, mode="bilinear")
        logits: torch.Tensor = self.network(pixel_values=x * 2 - 1).logits
        return logits


class Margin(torch.nn.Module):
    """Margin of the best wrong class over the true class (Carlini and Wagner 2017).

    Unlike the cross-entropy, it has a gradient where the posterior is 1 in float32. Posteriors of diffusion models
    often are.
    """

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean margin over the batch."""
        true = torch.nn.functional.one_hot(labels.argmax(1) if labels.ndim == 2 else labels, logits.shape[1]).bool()
        return (logits.masked_fill(true, -torch.inf).amax(1) - logits[true]).mean()


def diffusion_scores(source: str, draws: int) -> DifferentiableScores:
    """Return the differentiable scores of a diffusion model, with the settings and scale of its classifier."""
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
parser.add_argument("--draws", type=int, default=8, help="draws per attack step (default: %(default)s)")
parser.add_argument("--steps", type=int, nargs="+", default=[1, 20])
parser.add_argument("--batch", type=int, default=20)
parser.add_argument(
    "--linf", type=float, nargs="*", default=[2, 8, 64], help="radii in units of 1/255 (default: %(default)s)"
)
parser.add_argument(
    "--l2", type=float, nargs="*", default=[0.25, 1, 8], help="radii, for pixels in [0, 1] (default: %(default)s)"
)
options = parser.parse_args()

images = evenly_spaced(load(options.data)[1], options.images)
clean = np.stack(pictures(images))[:, None].astype(np.float32) / 255
names = [*options.diffusion, *options.supervised]
balls = [(np.inf, eps / 255) for eps in options.linf] + [(2, eps) for eps in options.l2]
results: list[dict[str, object]] = []


def record_accuracy(
    attack: str, norm: float, eps: float, steps: int, changed: np.ndarray, models: Sequence[str]
) -> None:
    """Record the accuracy of each model on the changed images."""
    rounded = [np.round(image[0] * 255).astype(np.uint8) for image in changed]
    for name in models:
        row = {"attack on": attack, "norm": str(norm), "eps": round(eps, 4), "steps": steps, "model": name}
        results.append(row | {"accuracy": share_interval(predict(name, rounded) == images.labels)})
        print(json.dumps(results[-1]), flush=True)
    options.out.write_text(json.dumps(results, indent=1))


record_accuracy("none", 0, 0, 0, clean, names)
rng = np.random.default_rng(0)
for norm, eps in balls:
    noise = rng.choice([-1.0, 1.0], clean.shape) if norm == np.inf else rng.normal(size=clean.shape)
    size = 1.0 if norm == np.inf else np.sqrt((noise**2).sum((1, 2, 3), keepdims=True))
    record_accuracy("noise", norm, eps, 0, np.clip(clean + eps * noise / size, 0, 1).astype(np.float32), names)
for attacked in names:
    module = Logits(attacked) if attacked in options.supervised else diffusion_scores(attacked, options.draws)
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
            record_accuracy(attacked, norm, eps, steps, changed, [attacked] if steps == 1 else names)
