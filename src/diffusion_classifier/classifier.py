"""`DiffusionClassifier`: the public face."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .batching import tune
from .denoisers import Conditioning, Denoiser, ModelDefaults, load_denoiser
from .draws import Draws, Timesteps
from .exceptions import InputError
from .images import ImageError, ImageSource, Picture, load_image, preprocess
from .posterior import Classification, decide
from .prompts import fill_template, parse_labels
from .reading import Reading, resolve_reading
from .scoring import Job, Scored, Spent, check_weights, find_loss, score
from .shortlists import Setting, Shortlist, parse_shortlist
from .strategies import Fixed, Strategy
from .weights import Weights

_DECODED_AHEAD = 8
"""Images that are decoded and wait for room in a batch; few, since each may hold megabytes."""

_ONE = (str, bytes, os.PathLike, Image.Image, np.ndarray, Tensor)


class DiffusionClassifier:
    """A conditional diffusion model as a classifier (paper, Algorithm 1).

    Example:
        >>> clf = DiffusionClassifier.from_pretrained("fashion")
        >>> clf("boot.png", candidate_labels=["Ankle boot", "Sneaker"])  # doctest: +SKIP
        [{'score': 0.98, 'label': 'Ankle boot'}, {'score': 0.02, 'label': 'Sneaker'}]

    Args:
        denoiser: the model.
        batch_size: rows of one network call; measured at the first use if "auto", see `batching`. Halved when memory
            runs out.
        compile_network: torch.compile; see `Denoiser.compile`.

    Raises:
        InputError: a batch size below 1.
    """

    def __init__(self, denoiser: Denoiser, *, batch_size: int | str = "auto", compile_network: bool = False) -> None:
        if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"the batch size must be a whole number from 1, or auto; got {batch_size}")
        self.denoiser = denoiser
        self.batch_size = batch_size
        self._compile = compile_network
        self._encoded: tuple[Any, Conditioning] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "fashion",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        batch_size: int | str = "auto",
        compile_network: bool = False,
        calibration: str | Path | None = None,
    ) -> DiffusionClassifier:
        """Load a bundled model, a folder that a diffusers pipeline was saved to, or a hub id; see `load_denoiser`.

        With a file that the command `calibrate` wrote, the model is read as that says.
        """
        denoiser = load_denoiser(model, device=device, dtype=dtype)
        if calibration is not None:
            denoiser.defaults = ModelDefaults.load(Path(calibration))
        return cls(denoiser, batch_size=batch_size, compile_network=compile_network)

    def __call__(
        self,
        images: ImageSource | Iterable[ImageSource],
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str = "This is a photo of {}.",
        **options: Any,
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Answers as transformers' `ZeroShotImageClassificationPipeline` does.

        Args:
            images: one, or a list; see `classify`.
            candidate_labels: a list, or a comma-separated string; all that it knows for a class-conditional model.
            hypothesis_template: what makes a label a prompt; a class-conditional model has no use for it.
            **options: of `classify`.

        Returns:
            For one image a list of `{"score", "label"}`, best first; for a list of images a list of such lists.

        Raises:
            InputError: anything that cannot be used, an image included.
        """
        template = hypothesis_template if self.denoiser.class_names is None else None
        results = self.classify(images, candidate_labels, template=template, **options)
        for result in results:
            if result.failure is not None:
                raise InputError(f"{result.name}: {result.failure}")
        answers = [[{"score": p, "label": name} for name, p in result.scores.items()] for result in results]
        return answers[0] if isinstance(images, _ONE) else answers

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: str | Sequence[str] | None = None,
        **options: Any,
    ) -> list[Classification]:
        """Classify images; arguments as in `stream`, results in the order of the images."""
        results = dict(self._stream(images, classnames, **options))
        return [results[i] for i in range(len(results))]

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Iterator[Classification]:
        """Classify images and yield each result as it is done, which need not be in the order of the images.

        Args:
            images: paths, contents of files, PIL images, arrays (H, W[, C]) or tensors (C, H, W); see
                `images.load_image`. Taken one by one, when there is room in a batch.
            classnames: candidates, at least two; all classes of a class-conditional model if None.
            template: "a photo of a {}." for a text-to-image model; None if the class names are prompts themselves.
            shortlist: narrows down the candidates of each image before the search, such as `Screened(clip, keep=20)`
                or "gradient:4"; see `shortlists`.
            strategy: such as `Fixed(64)` or "staged:25,250/5,1"; the model's own if None, without those of its
                stages that would keep all classes.
            timesteps: where the draws lie, such as "even" or "middle:0.5"; the model's own if None.
            loss: "l2", "l1" or "huber"; the model's own if None.
            weights: over time: a function of t/T such as `lambda u: torch.exp(-7 * u)`, numbers at evenly spaced times
                or a JSON file of them, "fitted" for those of a calibration, "uniform"; the model's own if None, which
                are uniform unless fitted ones were shown to be better. See `weights.read_weights`.
            seed: of the noise.
            reduction: whether errors count as sums or as means over dimensions in the posterior.
            temperature: of the posterior; if None the model's own, which was fitted for its own loss and sums over
                dimensions, else 1.
            prior: one positive number a class; uniform if None.

        Yields:
            A `Classification` for every image; for one that cannot be used, with the reason in `failure`.

        Raises:
            InputError: classes, template, strategy or another setting cannot be used.
        """
        return (result for _, result in self._stream(images, classnames, **options))

    def _stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: str | Sequence[str] | None = None,
        *,
        template: str | None = None,
        shortlist: Shortlist | str | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, Classification]]:
        """Positions and results. Complains at once, before any image is read, of settings that cannot be used."""
        names, conditioning = self.condition(classnames, template)
        reading = self.reading(names, **options)
        settings = {"num_dimensions": self.num_dimensions, **reading.posterior_settings()}
        narrowing = parse_shortlist(shortlist) if isinstance(shortlist, str) else shortlist
        taken: dict[str, tuple[str, tuple[str, ...]]] = {}
        unusable: list[Scored] = []

        def jobs() -> Iterator[Job]:
            for i, source in enumerate([images] if isinstance(images, _ONE) else images):
                name = _name(i, source)
                try:
                    picture = load_image(source, name)
                    job = self._job(str(i), picture)
                    if narrowing is not None and narrowing.wants_pictures:
                        job = replace(job, picture=picture.image)
                except ImageError as e:
                    taken[str(i)] = name, ()
                    none, reason = torch.empty(len(names), 0), str(e).removeprefix(f"{name}: ")
                    unusable.append(Scored(str(i), none, torch.zeros(len(names)).bool(), none[0], Spent(), reason))
                else:
                    taken[str(i)] = name, picture.notes
                    yield job

        def answer(scored: Scored) -> tuple[int, Classification]:
            name, notes = taken.pop(scored.name)
            return int(scored.name), decide(replace(scored, name=name), names, notes=notes, **settings)

        draws = Draws(reading.timesteps, reading.seed)
        ahead: Iterator[Job] = _prefetch(jobs(), _DECODED_AHEAD)
        strategy, loss, weights = reading.strategy, reading.loss, reading.weights
        if narrowing is not None:
            batch_size = self._ready(conditioning, strategy, draws, loss, weights)
            setting = Setting(self.denoiser, names, template, conditioning, draws, loss, weights, batch_size)
            ahead = narrowing.narrow(setting, ahead)
        scores = self._score(ahead, conditioning, strategy, draws, loss, names, weights)

        def results() -> Iterator[tuple[int, Classification]]:
            for scored in chain(scores, [None]):
                while unusable:
                    yield answer(unusable.pop(0))
                if scored is not None:
                    yield answer(scored)

        return results()

    @property
    def num_dimensions(self) -> int:
        """Of a latent."""
        return prod(self.denoiser.latent_shape)

    def reading(self, class_names: Sequence[str], **options: Any) -> Reading:
        """The settings that `stream` will use for these candidates, if given these options."""
        return resolve_reading(self.denoiser.defaults, class_names, **options)

    def _score(
        self,
        jobs: Iterable[Job],
        conditioning: Conditioning,
        strategy: Strategy,
        draws: Draws,
        loss: str,
        class_names: Sequence[str],
        weights: Weights | None = None,
    ) -> Iterator[Scored]:
        batch_size = self._ready(conditioning, strategy, draws, loss, weights)
        return score(
            self.denoiser,
            jobs,
            conditioning,
            strategy,
            draws=draws,
            loss=loss,
            weights=weights,
            batch_size=batch_size,
            class_names=class_names,
        )

    def _ready(
        self, conditioning: Conditioning, strategy: Strategy, draws: Draws, loss: str, weights: Weights | None
    ) -> int:
        """`prepare`; complains of loss, times and weights before the network is tuned, which takes a while."""
        schedule = self.denoiser.schedule
        find_loss(loss)
        draws.times(schedule, range(max(1, len(draws.timesteps.values))), 0)
        check_weights(weights, draws, schedule, strategy.init(len(conditioning)).errors.shape[1])
        return self.prepare(conditioning)

    def prepare(self, conditioning: Conditioning) -> int:
        """Tune and compile the network, where that was asked for; returns the batch size."""
        if isinstance(self.batch_size, str):
            self.batch_size = tune(self.denoiser, conditioning)
        if self._compile and not self.denoiser.compiled:  # not before: each size that is tried would be compiled
            self.denoiser.compile()
        return self.batch_size

    def _job(self, name: str, picture: Picture) -> Job:
        return Job(name, preprocess(picture.image, self.denoiser.image_size, crop=self.denoiser.crop), picture.key)

    def errors(
        self,
        image: ImageSource | Iterable[ImageSource],
        classes: Sequence[str] | Sequence[int],
        *,
        timesteps: Sequence[float],
        noise: Tensor | None = None,
        loss: str = "l2",
        template: str | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Raw errors at given timesteps and, if passed, given noise: the hook for checking us.

        Args:
            image: one image, or several.
            classes: K classes, one being enough; with `template=None` a class string is the prompt itself.
            timesteps: N.
            noise: (N, *), one for each timestep; from the seed and the image's content if None.
            loss: "l2" (mean square), "l1" or "huber".
            template: as in `stream`.
            seed: of the noise, where none is passed.

        Returns:
            (K, N), float32, for one image; (B, K, N) for several.

        Raises:
            InputError: anything that cannot be used; a prediction that is not finite in float32 either.
        """
        classes = [classes] if isinstance(classes, str) else classes
        shape = (len(timesteps), *self.denoiser.latent_shape)
        if noise is not None and (noise := torch.as_tensor(noise)).shape != shape:
            raise InputError(f"noise of shape {tuple(noise.shape)} was given; {shape} is needed")
        if len(classes) == 0 or len(timesteps) == 0:
            raise InputError("at least one class and one timestep are needed")
        draws = Draws(Timesteps("fixed", values=tuple(timesteps)), seed, None if noise is None else noise.float().cpu())
        sources = [image] if isinstance(image, _ONE) else list(image)
        if not sources:
            raise InputError("no image was given")
        tables: dict[int, Tensor] = {}
        conditioning = self._encode(self._prompts(classes, template))
        jobs = (self._job(str(i), load_image(source, _name(i, source))) for i, source in enumerate(sources))
        names = list(map(str, classes))
        for scored in self._score(jobs, conditioning, Fixed(len(timesteps)), draws, loss, names):
            i = int(scored.name)
            if scored.failure is not None:
                raise InputError(f"{_name(i, sources[i])}: {scored.failure}")
            tables[i] = scored.errors
        stacked = torch.stack([tables[i] for i in range(len(sources))])
        return stacked[0] if isinstance(image, _ONE) else stacked

    def condition(
        self, classes: str | Sequence[str] | Sequence[int] | None, template: str | None
    ) -> tuple[tuple[str, ...], Conditioning]:
        """The candidates' names (K) and their conditioning, K rows.

        Raises:
            InputError: fewer than two classes or one twice, a class that the model does not know, no classes for a
                model that needs some, or a template for one that reads no text.
        """
        known = self.denoiser.class_names
        if classes is None:
            if known is None:
                raise InputError("this model reads text: give it the labels to choose from")
            classes = range(len(known))
        if known is not None and not isinstance(classes, str) and all(isinstance(c, Integral) for c in classes):
            ids = [int(c) for c in classes]
            conditioning = self._encode(self._prompts(ids, template))
            names = [known[i] for i in ids]
            shared = Counter(map(str.lower, names))  # two classes of ImageNet are a crane
            names = [f"{name} ({i})" if shared[name.lower()] > 1 else name for name, i in zip(names, ids, strict=True)]
            return tuple(parse_labels(names)), conditioning
        names = parse_labels(classes)  # type: ignore[arg-type]
        return tuple(names), self._encode(self._prompts(names, template))

    def _encode(self, prompts: Sequence[str] | Sequence[int]) -> Conditioning:
        """As the denoiser does; that of the last call is kept, since most programs ask about the same classes again."""
        key = tuple(prompts), self.denoiser.device
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = key, self.denoiser.condition(prompts)
        return self._encoded[1]

    def _prompts(self, classes: Sequence[str] | Sequence[int], template: str | None) -> Sequence[str] | Sequence[int]:
        if template is None:
            return classes
        if self.denoiser.class_names is not None:
            raise InputError("this model knows classes, not text: it has no use for a template")
        if not all(isinstance(c, str) for c in classes):
            raise InputError("this model reads text: give it words rather than class indices")
        return fill_template(template, classes)  # type: ignore[arg-type]


def _prefetch(items: Iterable[Job], ahead: int) -> Iterator[Job]:
    """The items in their order, each made by a thread of its own while those before it are in use."""
    source = iter(items)
    pool = ThreadPoolExecutor(1, "decode")
    try:
        coming = deque(pool.submit(next, source, None) for _ in range(ahead))
        while (item := coming.popleft().result()) is not None:
            coming.append(pool.submit(next, source, None))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _name(position: int, source: ImageSource) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"image {position}"
