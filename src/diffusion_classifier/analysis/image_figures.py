"""What decided the answer for one image: over time, draw by draw, place by place, and word by word.

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
"""Classes that are named in a race."""


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
    """Errors (K, E, T) of an image, each noise being looked at at every one of the times (T,).

    Args:
        classifier: of any model.
        image: one.
        classes: K.
        num_noises: E.
        num_times: T, evenly spread, both ends left out.
        loss: see `DiffusionClassifier.errors`.
        seed: of the noises.
        prompts: template and average; see there.

    Raises:
        InputError: as there.
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
    """The paper's figure 2: a panel for each noise; at each time, the mean over all that is shown is taken off.

    Args:
        errors: (K, E, T).
        times: (T,).
        names: K.
        file: to write.
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
    top.set_title("error, less its mean at each time: lower is better", fontsize=9)
    top.legend(fontsize=7, ncols=2)
    bottom.set_xlabel("time t")
    save(fig, file)


def draw_race(errors: Tensor, names: Sequence[str], file: Path) -> None:
    """Rank of each class by its mean error so far, as draws accumulate; those that end best are named.

    Args:
        errors: (K, N), full.
        names: K.
        file: to write.
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
    """Where on the image the first class fits better than the second: the image as the model sees it, and a map (S, S).

    The map is the mean over draws and channels of the second's error less that of the first, at each place of the
    latent; its mean is what tells the two apart.

    Args:
        denoiser: the model.
        image: one.
        classes: two; prompts of a model that reads text.
        num_draws: of both.
        loss: one of `losses.LOSSES`; the model's own if None, or ℓ2 where that is a bound, which has no places.
        draws: which; even times if None.
        weights: of each draw by its time; uniform if None.

    Raises:
        InputError: no such loss; as `load_image` and `Denoiser.condition`.
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
        first, second = (_at_each_place(loss, eps[0], p).cpu() for p in predicted)
        total += float(shares[n]) * (second - first)
    patch = (getattr(denoiser, "patch_size", None) or 1) if denoiser.in_pixels else 1
    found = torch.nn.functional.pixel_shuffle(total, patch).mean(0)
    return to_image(pixels), found.double().numpy()


def _at_each_place(loss: str, eps: Tensor, predicted: Tensor) -> Tensor:
    """Errors of single numbers: rows of one each."""
    return LOSSES[loss](eps.reshape(-1, 1), predicted.reshape(-1, 1)).view(eps.shape)


def draw_where(image: Image.Image, difference: NDArray[np.float64], classes: tuple[str, str], file: Path) -> None:
    """The image, the map over it, and the map alone."""
    plt = pyplot()
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
    reach = float(np.quantile(np.abs(difference), 0.99)) or 1.0
    for ax, shown in zip(axes, (image, None), strict=True):
        ax.imshow(image.convert("L"), cmap="gray", vmin=0, vmax=255, extent=(0, 1, 0, 1))
        if shown is None:
            over = {"cmap": "RdBu", "vmin": -reach, "vmax": reach, "extent": (0, 1, 0, 1), "alpha": 0.75}
            drawn = ax.imshow(difference, **over)
            fig.colorbar(drawn, ax=ax, shrink=0.8, label="error of the second less the first's")
        ax.set(xticks=[], yticks=[])
    axes[1].set_title(f"blue: {classes[0]}; red: {classes[1]}", fontsize=9, parse_math=False)
    save(fig, file)


def words(
    classifier: DiffusionClassifier, image: ImageSource, prompt: str, *, num_draws: int = 64, loss: str = "l2"
) -> list[tuple[str, float, float]]:
    """What each word of a prompt is worth to an image: by how much its error rises when the word is left out.

    Args:
        classifier: of a model that reads text.
        image: one.
        prompt: of two words at least.
        num_draws: of every prompt.
        loss: see `DiffusionClassifier.errors`.

    Returns:
        For each word, the rise of the mean error, and its standard error over draws, which all prompts share.

    Raises:
        InputError: a model of classes, a single word, or as `DiffusionClassifier.errors`.
    """
    parts = prompt.split()
    if len(parts) < 2:
        raise InputError(f"of a prompt of two words or more one can be left out; got {prompt!r}")
    if classifier.denoiser.class_names is not None:
        raise InputError("this model knows classes and reads no words")
    prompts = [prompt, *(" ".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts)))]
    times = Draws().times(classifier.denoiser.schedule, range(num_draws), 0).tolist()
    errors = classifier.errors(image, prompts, timesteps=times, loss=loss).double()
    rises = errors[1:] - errors[0]
    spread = rises.std(1) / num_draws**0.5 if num_draws > 1 else torch.full((len(parts),), torch.nan)
    return [(word, float(rise), float(se)) for word, rise, se in zip(parts, rises.mean(1), spread, strict=True)]


def draw_words(found: Sequence[tuple[str, float, float]], file: Path) -> None:
    """A bar for each word, with 95 % intervals."""
    plt = pyplot()
    names, rises, spread = zip(*found, strict=True)
    fig, ax = plt.subplots(figsize=(6, 0.35 * len(names) + 1.2), layout="constrained")
    ax.barh(range(len(names)), rises, xerr=1.96 * np.array(spread), color="C0", alpha=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="gray", lw=0.8)
    ax.set_xlabel("rise of the error when the word is left out")
    save(fig, file)
