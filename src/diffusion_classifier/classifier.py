"""`DiffusionClassifier`: the public face."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .caption_reader import CaptionReader
from .data.images import ImageSource, Picture, load_image
from .denoisers import Average, Conditioning, ModelDefaults, load_denoiser
from .diffusion.draws import Draws, Timesteps
from .errors import InputError
from .search.candidates import Classes, Template, as_templates
from .search.classification import Classification, decide
from .search.image_queue import ImageQueue, as_many, is_one, name_of
from .search.jobs import ImageJob
from .search.shortlists import SearchContext, Shortlist, parse_shortlist
from .search.strategies import Fixed


class DiffusionClassifier(CaptionReader):
    """A conditional diffusion model as a classifier (paper, Algorithm 1).

    Examples:
        >>> clf = DiffusionClassifier.from_pretrained("fashion")
        >>> clf("boot.png", candidate_labels=["Ankle boot", "Sneaker"])  # doctest: +SKIP
        [{'score': 0.98, 'label': 'Ankle boot'}, {'score': 0.02, 'label': 'Sneaker'}]

    Arguments as in `Scorer`.
    """

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
        **options: Any,
    ) -> DiffusionClassifier:
        """Load a bundled model, a folder that a diffusers pipeline was saved to, or a hub id.

        With a file that the command `calibrate` wrote, the model is read as that says. Other arguments and options as
        in `load_denoiser`.
        """
        denoiser = load_denoiser(model, device=device, dtype=dtype, **options)
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
        reads_names = self.denoiser.class_names is None and options.get("conditioning") is None
        template = hypothesis_template if reads_names else None
        results = self.classify(images, candidate_labels, template=template, **options)
        for result in results:
            if result.failure is not None:
                raise InputError(f"{result.name}: {result.failure}")
        answers = [[{"score": p, "label": name} for name, p in result.scores.items()] for result in results]
        return answers[0] if is_one(images) else answers

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: Classes | None = None,
        **options: Any,
    ) -> list[Classification]:
        """Classify images; arguments as in `stream`, results in the order of the images."""
        results = dict(self.enumerated(images, classnames, **options))
        return [results[i] for i in range(len(results))]

    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: Classes | None = None,
        **options: Any,
    ) -> Iterator[Classification]:
        """Classify images and yield each result as it is done, which need not be in the order of the images.

        Args:
            images: paths, contents of files, PIL images, arrays (H, W[, C]) or tensors (C, H, W); see
                `images.load_image`. Taken one by one, when there is room in a batch.
            classnames: candidates, at least two; all classes of a class-conditional model if None.
            template: "a photo of a {}." for a text-to-image model, or several; None if the class names are prompts
                themselves.
            average: over what several prompts of a class are averaged: "error", for as many predictions, or
                "embedding", for one.
            prompt_names: what stands for each class in its prompt; the class names themselves if None. Classes of equal
                prompts tie.
            conditioning: ready encodings of the classes, as `Denoiser.condition` returns them, in place of prompts.
            shortlist: narrows down the candidates of each image before the search, such as `Screened(clip, keep=20)`
                or "gradient:4"; see `shortlists`.
            also: other losses, whose errors are wanted of the same predictions (`Classification.also`).
            strategy: such as `Fixed(64)` or "staged:25,250/5,1"; the model's own if None, without those of its
                stages that would keep all classes.
            timesteps: where the draws lie, such as "even" or "middle:0.5"; the model's own if None.
            loss: "l2", "l1" or "huber"; "vlb" or "l2+vlb" where the variance is predicted, too; the model's own if
                None.
            weights: over time: a function of t/T such as `lambda u: torch.exp(-7 * u)`, numbers at evenly spaced times
                or a JSON file of them, "fitted" for those of a calibration, "training" for those that the network was
                trained with (`posterior.training_weights`), "uniform"; the model's own if None: those fitted for it
                where they were shown to be better, else `default_weights`. See `weights.read_weights`.
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
        return (result for _, result in self.enumerated(images, classnames, **options))

    def enumerated(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: Classes | None = None,
        *,
        template: Template = None,
        average: Average = "error",
        prompt_names: Sequence[str] | None = None,
        conditioning: Conditioning | None = None,
        shortlist: Shortlist | str | None = None,
        also: Sequence[str] = (),
        **options: Any,
    ) -> Iterator[tuple[int, Classification]]:
        """As `stream`, with the position of each image among those that were given."""
        names, conditioning = self._candidates.named(classnames, template, average, conditioning, prompt_names)
        reading = self.reading(names, **options)
        settings = {"num_dimensions": self.num_dimensions, **reading.posterior_settings()}
        narrowing = parse_shortlist(shortlist) if isinstance(shortlist, str) else shortlist

        def as_job(name: str, picture: Picture) -> ImageJob:
            job = self._job(name, picture)
            wanted = narrowing is not None and narrowing.wants_pictures
            return replace(job, picture=picture.image) if wanted else job

        queue = ImageQueue(images, as_job, len(names))
        draws = Draws(reading.timesteps, reading.seed)
        jobs = queue.jobs()
        strategy, loss, weights = reading.strategy, reading.loss, reading.weights
        if narrowing is not None:
            batch_size = self._ready(conditioning, strategy, draws, loss, weights)
            templates = as_templates(template)
            words = names if prompt_names is None else tuple(prompt_names)
            context = SearchContext(
                self.denoiser, words, templates, average, conditioning, draws, loss, weights, batch_size
            )
            jobs = narrowing.narrow(context, jobs)
        scores = self._score(jobs, conditioning, strategy, draws, loss, names, weights, also)
        return ((i, decide(scored, names, notes=notes, **settings)) for i, scored, notes in queue.results(scores))

    def errors(
        self,
        image: ImageSource | Iterable[ImageSource],
        classes: Sequence[str] | Sequence[int],
        *,
        timesteps: Sequence[float],
        noise: Tensor | None = None,
        loss: str = "l2",
        template: Template = None,
        average: Average = "error",
        unconditional: bool = False,
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
            average: as in `stream`.
            unconditional: one more row, the last: the errors of the model's null condition.
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
        sources = list(as_many(image))
        if not sources:
            raise InputError("no image was given")
        tables: dict[int, Tensor] = {}
        conditioning, names = self._candidates.encode(classes, template, average), list(map(str, classes))
        if unconditional:
            conditioning, names = self._candidates.with_null(conditioning), [*names, "(none)"]
        jobs = (self._job(str(i), load_image(source, name_of(i, source))) for i, source in enumerate(sources))
        for scored in self._score(jobs, conditioning, Fixed(len(timesteps)), draws, loss, names):
            i = int(scored.name)
            if scored.failure is not None:
                raise InputError(f"{name_of(i, sources[i])}: {scored.failure}")
            tables[i] = scored.errors
        stacked = torch.stack([tables[i] for i in range(len(sources))])
        return stacked[0] if is_one(image) else stacked
