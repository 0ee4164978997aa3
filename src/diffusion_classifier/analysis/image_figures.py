"""Figures that explain the prediction for one image: by timestep, draw, position and word.

Shape legend: K classes, E noises, T times, N draws, S edge of a map.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..classifier import DiffusionClassifier
from ..data.images import ImageSource, load_image, preprocess
from ..denoisers import Denoiser
from ..denoisers.devices import to_device
from ..denoisers.sampling import finite_noise, to_image
from ..diffusion.draws import Draws
from ..diffusion.losses import LOSSES
from ..diffusion.schedules import add_noise
from ..diffusion.timestep_weights import Weights, weights_at
from ..errors import InputError
from .plotting import pyplot, save

SHOWN = 5
"""Number of classes that are named in a race."""


def errors_over_time(
    classifier: DiffusionClassifier,
    image: ImageSource,
    classes: Sequence[str],
    *,
    num_noises: int = 4,
    num_times: int = 50,
    loss: str = "l2",
    seed: int = 0,
    **prompts: Any,
) -> tuple[Tensor, Tensor]:
    """Compute the errors of an image for each noise at each timestep.

    Args:
        classifier: any model.
        image: the image.
        classes: K class names.
        num_noises: E.
        num_times: T, evenly spread without both ends.
        loss: as in `DiffusionClassifier.errors`.
        seed: seed of the noises.
        prompts: template and average, as in `DiffusionClassifier.errors`.

    Returns:
        Errors (K, E, T) and timesteps (T,).

    Raises:
        InputError: as `DiffusionClassifier.errors`.
    """
    schedule, shape = classifier.denoiser.schedule, classifier.denoiser.latent_shape
    times = schedule.timesteps((torch.arange(num_times, dtype=torch.float64) + 0.5) / num_times).double()
    noises = torch.stack([Draws(seed=seed).noise(e, 0, shape) for e in range(num_noises)])
    errors = classifier.errors(
        image, classes, timesteps=times.tolist() * num_noises, noise=noises.repeat_interleave(num_times, 0), loss=loss,
        **prompts,
    )  # fmt: skip
    return errors.view(len(classes), num_noises, num_times), times


def draw_errors(errors: Tensor, times: Tensor, names: Sequence[str], file: Path) -> None:
    """Draw errors against timestep with a panel for each noise, less the mean at each timestep (figure 2 of the paper).

    Args:
        errors: (K, E, T).
        times: timesteps, (T,).
        names: K class names.
        file: file to write.
    """
    plt = pyplot()
    centred = errors.double() - errors.double().mean((0, 1))
    e = errors.shape[1]
    fig, axes = plt.subplots(e, 1, figsize=(6, 1.4 * e + 0.6), sharex=True, sharey=True, layout="constrained")
    for i, ax in enumerate(np.atleast_1d(axes)):
        ax.axhline(0, color="gray", lw=0.8)
        for k, name in enumerate(names):
            ax.plot(times, centred[k, i], lw=1, color=f"C{k}", label=name)
        ax.set_ylabel(f"noise {i + 1}", fontsize=8)
        ax.grid(alpha=0.3)
    top, bottom = np.atleast_1d(axes)[0], np.atleast_1d(axes)[-1]
    top.set_title("error less its mean at each timestep (lower is better)", fontsize=9)
    top.legend(fontsize=7, ncols=2)
    bottom.set_xlabel("timestep t")
    save(fig, file)


def draw_race(errors: Tensor, names: Sequence[str], file: Path) -> None:
    """Draw the rank of each class by its mean error over the first draws; the classes that end best are named.

    Args:
        errors: full table, (K, N).
        names: K class names.
        file: file to write.
    """
    plt = pyplot()
    k, n = errors.shape
    means = errors.double().cumsum(1) / torch.arange(1, n + 1)
    ranks = means.argsort(0).argsort(0) + 1
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    best = means[:, -1].argsort()[: min(SHOWN, k)].tolist()
    for i in [*(set(range(k)) - set(best)), *best]:
        place = best.index(i) if i in best else None
        style = {"color": "lightgray", "lw": 0.8} if place is None else {"color": f"C{place}", "lw": 1.8}
        ax.step(range(1, n + 1), ranks[i], where="mid", label=None if place is None else names[i], **style)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="draws", ylabel="rank by mean error")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=8, loc="lower left")
    save(fig, file)


@torch.inference_mode()
def where(
    denoiser: Denoiser,
    image: ImageSource,
    classes: Sequence[str] | Sequence[int],
    *,
    num_draws: int = 64,
    loss: str | None = None,
    draws: Draws | None = None,
    weights: Weights | None = None,
) -> tuple[Image.Image, NDArray[np.float64]]:
    """Compute a map of where the first class matches the image better than the second.

    The map is the error of the second class less that of the first, at each position of the latent, averaged over draws
    and channels. Its mean decides between the two classes.

    Args:
        denoiser: the model.
        image: the image.
        classes: two classes; prompts for a text-to-image model.
        num_draws: number of draws, which both classes share.
        loss: one of `losses.LOSSES`. Default: the model's own, or ℓ2 if that is a bound, which has no positions.
        draws: the draws; even timesteps if None.
        weights: timestep weights; uniform if None.

    Returns:
        The image at the model's resolution, and the map (S, S).

    Raises:
        InputError: the loss is unknown; as `load_image` and `Denoiser.condition`.
    """
    if loss is None:
        loss = denoiser.defaults.loss if denoiser.defaults.loss in LOSSES else "l2"
    if loss not in LOSSES:
        raise InputError(f"the loss of a map is one of {', '.join(LOSSES)}; got {loss!r}")
    draws = draws or Draws()
    pixels = preprocess(load_image(image).image, denoiser.image_size, crop=denoiser.crop)
    latent = denoiser.encode(pixels[None].to(denoiser.device))
    conditioning = denoiser.condition(classes).to(denoiser.device)
    total, times = torch.zeros(latent.shape[1:]), draws.times(denoiser.schedule, range(num_draws), 0)
    shares = weights_at(weights or (1.0, 1.0), times / denoiser.schedule.num_timesteps)
    shares /= shares.sum()
    for n in range(num_draws):
        t = times[n : n + 1]
        eps = to_device(draws.noise(n, 0, denoiser.latent_shape)[None], denoiser.device)
        alpha, sigma = (to_device(a, denoiser.device) for a in denoiser.schedule(t))
        noisy = add_noise(latent, eps, alpha, sigma)
        predicted = finite_noise(denoiser, noisy, t, conditioning, torch.zeros(2, dtype=torch.int64))
        first, second = (_at_each_position(loss, eps[0], p).cpu() for p in predicted)
        total += float(shares[n]) * (second - first)
    patch = (getattr(denoiser, "patch_size", None) or 1) if denoiser.in_pixels else 1
    found = torch.nn.functional.pixel_shuffle(total, patch).mean(0)
    return to_image(pixels), found.double().numpy()


def _at_each_position(loss: str, eps: Tensor, predicted: Tensor) -> Tensor:
    """Return the error at each position: the loss of rows with a single number."""
    return LOSSES[loss](eps.reshape(-1, 1), predicted.reshape(-1, 1)).view(eps.shape)


def draw_where(image: Image.Image, difference: NDArray[np.float64], classes: tuple[str, str], file: Path) -> None:
    """Draw the image, and the map over it."""
    plt = pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    reach = float(np.quantile(np.abs(difference), 0.99)) or 1.0
    for ax, shown in zip(axes, (image, None), strict=True):
        ax.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=(0, 1, 0, 1))
        if shown is None:
            over = {"cmap": "RdBu", "vmin": -reach, "vmax": reach, "extent": (0, 1, 0, 1), "alpha": 0.75}
            drawn = ax.imshow(difference, **over)
            fig.colorbar(drawn, ax=ax, shrink=0.8, label="error: second class - first class")
        ax.set(xticks=[], yticks=[])
    axes[1].set_title(f"blue: {classes[0]}; red: {classes[1]}", fontsize=9, parse_math=False)
    save(fig, file)


def words(
    classifier: DiffusionClassifier, image: ImageSource, prompt: str, *, num_draws: int = 64, loss: str = "l2"
) -> list[tuple[str, float, float]]:
    """Compute the increase of the error of an image when a word is left out of the prompt, for each word.

    Args:
        classifier: a text-to-image model.
        image: the image.
        prompt: prompt of at least two words.
        num_draws: number of draws, which all prompts share.
        loss: as in `DiffusionClassifier.errors`.

    Returns:
        For each word: the word, the increase of the mean error, and its standard error over draws.

    Raises:
        InputError: the model is class-conditional, the prompt is a single word, or as `DiffusionClassifier.errors`.
    """
    parts = prompt.split()
    if len(parts) < 2:
        raise InputError(f"the prompt must have at least two words, so that one can be left out; got {prompt!r}")
    if classifier.denoiser.class_names is not None:
        raise InputError("this model knows classes and reads no words")
    prompts = [prompt, *(" ".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts)))]
    times = Draws().times(classifier.denoiser.schedule, range(num_draws), 0).tolist()
    errors = classifier.errors(image, prompts, timesteps=times, loss=loss).double()
    rises = errors[1:] - errors[0]
    spread = rises.std(1) / num_draws**0.5 if num_draws > 1 else torch.full((len(parts),), torch.nan)
    return [(word, float(rise), float(se)) for word, rise, se in zip(parts, rises.mean(1), spread, strict=True)]


def draw_words(found: Sequence[tuple[str, float, float]], file: Path) -> None:
    """Draw a bar with its 95% interval for each word."""
    plt = pyplot()
    names, rises, spread = zip(*found, strict=True)
    fig, ax = plt.subplots(figsize=(6, 0.35 * len(names) + 1.2), layout="constrained")
    ax.barh(range(len(names)), rises, xerr=1.96 * np.array(spread), color="C0", alpha=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="gray", lw=0.8)
    ax.set_xlabel("increase of the error without the word")
    save(fig, file)
