"""Shared functions of the experiments: data, training for a number of FLOPs, predictions and samples."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.analysis import pyplot, save
from diffusion_classifier.baselines import kind_of, load_baseline
from diffusion_classifier.data import FASHION, HELD_OUT, LabelledSource, load_image
from diffusion_classifier.denoisers import Denoiser, draw_images, load_denoiser
from diffusion_classifier.runs import BaselineEvaluator, ClassEvaluator, choose, evaluate
from diffusion_classifier.search import CaptionScore
from diffusion_classifier.tasks import open_task
from diffusion_classifier.training import (
    SupervisedConfig,
    TrainConfig,
    TrainingCaptions,
    TrainingImages,
    build_classifier,
    build_network,
    decode,
    finetune,
    load_labelled_images,
    resolution,
    train,
    train_supervised,
)

Config = TrainConfig | SupervisedConfig
EARLY = TrainConfig(
    beta_schedule="squaredcos_cap_v2", patch_size=2, channels=(64, 128), layers=2, batch_size=32, optimizer="muon",
    learning_rate=2e-3, warmup=200,
)  # fmt: skip
"""Training settings of `fashion`, a network that is class-conditional in every block."""


def late(head_layers: int) -> TrainConfig:
    """Return `EARLY` with late conditioning: shared backbone, class-conditional head of 2 n + 1 residual blocks."""
    return replace(EARLY, head=(32,), head_layers=head_layers)


def joint(config: TrainConfig, weight: float = 0.05) -> TrainConfig:
    """Add the cross-entropy over the true class and three negatives to the loss."""
    return replace(config, joint=weight, rivals=3)


def load(data: str) -> tuple[TrainingImages, TrainingImages]:
    """Return the training and the held-out images of Fashion-MNIST, split as in `make train-fashion`."""
    return load_labelled_images(data, class_names=FASHION).split(HELD_OUT, seed=0)


def scene_images(data: str, split: str, number: int) -> TrainingImages:
    """Return random images of `scenes-nouns`: one photograph each, without attributes, at a random place."""
    source = open_task("scenes-nouns", data=data, split=split)[1]
    some = source.take(torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:number].tolist())
    return TrainingImages(decode(some, None)[0], torch.tensor(some.labels), some.class_names)


def evenly_spaced(images: TrainingImages, number: int) -> TrainingImages:
    """Return `number` evenly spaced images, or all if there are fewer."""
    number = min(number, len(images))
    return images.take(torch.arange(number) * len(images) // number)


def pictures(images: TrainingImages) -> list[np.ndarray]:
    """Return the images as the arrays (H, W) that a classifier takes."""
    return [image[0].numpy() for image in images.images]


@torch.no_grad()
def forward_flops(config: Config, images: TrainingImages, classes: int = 1) -> int:
    """Return the FLOPs per image of a forward pass in training, for `classes` classes."""
    inputs = images.images[: 1 if isinstance(config, SupervisedConfig) or config.head else classes].float()
    # FlopCounterMode counts only this attention kernel.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        if isinstance(config, SupervisedConfig):
            edge = resolution(config.architecture, inputs.shape[-1])
            build_classifier(config, images).eval()(torch.zeros(1, 3, edge, edge))
        else:
            network, _ = build_network(config, images)
            noisy = torch.nn.functional.pixel_unshuffle(inputs, config.patch_size)
            network(noisy, torch.zeros(len(noisy)), class_labels=torch.zeros(classes, dtype=torch.int64))
    return int(counter.get_total_flops())


def train_for(images: TrainingImages, config: Config, flops: float, folder: Path) -> float:
    """Train for `flops`, or resume, and return the epochs. A backward pass counts as two forward passes."""
    classes = 1 + config.rivals if isinstance(config, TrainConfig) and config.joint else 1
    epochs = flops / (3 * forward_flops(config, images, classes)) / len(images)
    if isinstance(config, SupervisedConfig):
        train_supervised(images, replace(config, epochs=epochs), folder)
    else:
        train(images, replace(config, epochs=epochs), folder)
    return epochs


@cache
def load_model(model: str) -> Any:
    """Load and cache a diffusion classifier or a baseline."""
    return load_baseline(model) if kind_of(model) else DiffusionClassifier.from_pretrained(model)


def run_evaluation(model: str, source: LabelledSource, folder: Path, limit: int | None = None, **settings: Any) -> Path:
    """Evaluate a model, or resume, and return the run folder."""
    positions = choose(source, limit=limit if limit is None else min(limit, len(source)))
    evaluator = (BaselineEvaluator if kind_of(model) else ClassEvaluator)(**settings)
    rows = evaluate(load_model(model), source, folder, evaluator, positions=positions, model=model)
    for _ in track(rows, description=str(folder), total=len(positions)):
        pass
    return folder


def predict(model: str, images: list[np.ndarray]) -> Tensor:
    """Return the predicted class indices (M,) of a model FOLDER, or FOLDER@STRATEGY, for example `fashion@fixed:8`."""
    source, _, strategy = model.partition("@")
    classifier = load_model(source)
    if kind_of(source) == "supervised":
        score = classifier.logits_for(FASHION)
        return torch.stack([score(load_image(image).image, range(len(FASHION))) for image in images]).argmax(1)
    return torch.tensor([FASHION.index(r.label) for r in classifier.classify(images, strategy=strategy or None)])


def load_finetuned(model: str, data: TrainingCaptions, folder: Path, rank: int, **settings: Any) -> Denoiser:
    """Train LoRA weights into the folder, unless they exist, and load the model with them."""
    config = TrainConfig(batch_size=8, warmup=20, ema=0.99, label_dropout=0.0, **settings)
    finetune(data, load_denoiser(model), config, folder, rank=rank)
    return load_denoiser(model, loras=[folder])


def denoising_error(classifier: DiffusionClassifier, data: TrainingImages, captions: Sequence[str]) -> float:
    """Return the mean denoising error over images and 40 even timesteps, given the captions of the true classes."""
    own = [captions[label] for label in data.labels.tolist()]
    scores = classifier.score(pictures(data), own, pairs=True, draws=40, timesteps="even", weights="uniform")
    return float(torch.tensor([s.error for s in cast("list[CaptionScore]", scores)]).mean())


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance between features (N, D) and (M, D) (Heusel et al. 2017, equation 6)."""
    gap, first, second = (a.mean(0) - b.mean(0)).square().sum(), a.T.cov(), b.T.cov()
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt()
    return float(gap + first.trace() + second.trace() - 2 * roots.sum())


def sample_distance(denoiser: Denoiser, data: TrainingImages, captions: Sequence[str]) -> float:
    """Return the Fréchet distance between the images and samples, one per image with its caption.

    The features are image embeddings of `scenes/contrastive`.
    """
    drawn = draw_images(denoiser, [captions[label] for label in data.labels.tolist()], range(len(data)))
    return frechet_distance(_features(drawn), _features(load_image(picture).image for picture in pictures(data)))


def _features(images: Iterable[Image.Image]) -> Tensor:
    reader = load_model("scenes/contrastive")
    return torch.stack([reader.encode_image(image.convert("RGB")) for image in images]).double()


def draw_samples(models: Iterable[tuple[str, Denoiser]], prompts: Sequence[str], file: Path) -> None:
    """Plot one sample per prompt, one row per model, all from the same noise."""
    rows = [(name, list(draw_images(denoiser, prompts, range(len(prompts))))) for name, denoiser in models]
    fig, axes = pyplot().subplots(
        len(rows), len(prompts), figsize=(len(prompts), len(rows)), layout="constrained", squeeze=False
    )
    for row, (name, drawn) in zip(axes, rows, strict=True):
        for ax, picture in zip(row, drawn, strict=True):
            ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
            ax.axis("off")
        row[0].set_title(name, fontsize=7, loc="left")
    save(fig, file)
