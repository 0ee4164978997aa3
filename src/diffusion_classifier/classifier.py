"""`DiffusionClassifier`: classify images, score captions, and compute raw errors with a diffusion model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from .data.images import ImageSource, Picture, load_image
from .denoisers import Average, Conditioning, Denoiser, ModelDefaults, load_denoiser
from .diffusion.draws import Draws, Timesteps
from .errors import InputError
from .search.candidates import Classes, Template, as_templates
from .search.caption_scores import CaptionScore, caption_scores, choose_caption
from .search.classification import Classification, decide
from .search.image_queue import ImageQueue, as_many, is_one, name_of
from .search.jobs import ImageJob, ScoredImage
from .search.options import ClassifyOptions, LoadOptions, ScoreOptions, check_keywords
from .search.posterior import scale_of
from .search.scorer import Scorer
from .search.settings import CaptionOptions, ScoringOptions, ScoringSettings, resolve_settings
from .search.shortlists import SearchContext, Shortlist, parse_shortlist
from .search.strategies import Fixed


class DiffusionClassifier:
    """A conditional diffusion model as a classifier (paper, Algorithm 1). See `Scorer` for the arguments.

    Examples:
        >>> clf = DiffusionClassifier.from_pretrained("fashion")
        >>> clf("boot.png", candidate_labels=["Ankle boot", "Sneaker"])  # doctest: +SKIP
        [{'score': 0.98, 'label': 'Ankle boot'}, {'score': 0.02, 'label': 'Sneaker'}]
    """

    def __init__(self, denoiser: Denoiser, *, batch_size: int | str = "auto", compile_network: bool = False) -> None:
        self.scorer = Scorer(denoiser, batch_size=batch_size, compile_network=compile_network)

    @classmethod
    @check_keywords
    def from_pretrained(
        cls,
        model: str | Path = "fashion",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        batch_size: int | str = "auto",
        compile_network: bool = False,
        calibration: str | Path | None = None,
        **options: Unpack[LoadOptions],
    ) -> DiffusionClassifier:
        """Load a bundled model, a folder that a diffusers pipeline was saved to, or a hub id.

        Args:
            model: see `load_denoiser`; also for `device`, `dtype` and the other options.
            batch_size: see `Scorer`; also for `compile_network`.
            calibration: a file written by the command `calibrate`, which replaces the model's default settings.
        """
        denoiser = load_denoiser(model, device=device, dtype=dtype, **options)
        if calibration is not None:
            denoiser.defaults = ModelDefaults.load(Path(calibration))
        return cls(denoiser, batch_size=batch_size, compile_network=compile_network)

    @contextmanager
    def fixed_batches(self, batch_size: int | None = None, channels_last: bool | None = None) -> Iterator[Self]:
        """Yield a copy whose errors are bit-exact whatever shares their batch; see `Scorer.fixed_batches`."""
        with self.scorer.fixed_batches(batch_size, channels_last) as scorer:
            fixed = copy.copy(self)
            fixed.scorer = scorer
            yield fixed

    @property
    def denoiser(self) -> Denoiser:
        """The model."""
        return self.scorer.denoiser

    @check_keywords
    def __call__(
        self,
        images: ImageSource | Iterable[ImageSource],
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str = "This is a photo of {}.",
        **options: Unpack[ClassifyOptions],
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Classify with the interface of transformers' `ZeroShotImageClassificationPipeline`.

        Args:
            images: one image, or a list; see `stream`.
            candidate_labels: a list, or a comma-separated string. Default: all classes of a class-conditional model.
            hypothesis_template: prompt template; ignored by class-conditional models.
            **options: see `ClassifyOptions`.

        Returns:
            For one image a list of `{"score", "label"}`, best first; for a list of images a list of such lists.

        Raises:
            InputError: an argument or an image cannot be used.
        """
        needs_prompts = self.denoiser.class_names is None and options.get("conditioning") is None
        options = {"template": hypothesis_template if needs_prompts else None, **options}
        results = self.classify(images, candidate_labels, **options)
        if failed := [f"{result.name}: {result.failure}" for result in results if result.failure is not None]:
            raise InputError(failed[0])
        answers = [[{"score": p, "label": name} for name, p in result.scores.items()] for result in results]
        return answers[0] if is_one(images) else answers

    @check_keywords
    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: Classes | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> list[Classification]:
        """Classify images; arguments as in `stream`, results in the order of the images."""
        results = dict(self.enumerated(images, classnames, **options))
        return [results[i] for i in range(len(results))]

    @check_keywords
    def stream(
        self,
        images: ImageSource | Iterable[ImageSource],
        classnames: Classes | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> Iterator[Classification]:
        """Classify images and yield each result as it is done, which need not be in the order of the images.

        Args:
            images: paths, contents of files, PIL images, arrays (H, W[, C]) or tensors (C, H, W); see
                `images.load_image`. They are taken one by one, when a batch has room.
            classnames: at least two candidates. Default: all classes of a class-conditional model.
            **options: see `ClassifyOptions` for prompts and shortlists, and `ScoringOptions` for all other settings.

        Yields:
            A `Classification` for every image; if an image cannot be used, `failure` has the reason.

        Raises:
            InputError: classes, template, strategy or another setting cannot be used.
        """
        return (result for _, result in self.enumerated(images, classnames, **options))

    @check_keywords
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
        **options: Unpack[ScoringOptions],
    ) -> Iterator[tuple[int, Classification]]:
        """Do as `stream`, and yield the position of each image with its result."""
        scorer = self.scorer
        names, conditioning = scorer.candidates.named(classnames, template, average, conditioning, prompt_names)
        settings = self.settings_for(names, **options)
        chosen = parse_shortlist(shortlist) if isinstance(shortlist, str) else shortlist

        def as_job(name: str, picture: Picture) -> ImageJob:
            job = scorer.job(name, picture)
            return replace(job, picture=picture.image) if chosen is not None and chosen.wants_pictures else job

        queue = ImageQueue(images, as_job, len(names))
        jobs = queue.jobs()
        if chosen is not None:
            scorer.prepare(conditioning)
            words, templates = tuple(prompt_names or names), as_templates(template)
            jobs = chosen.narrow(SearchContext(scorer, settings, conditioning, words, templates, average), jobs)
        results = queue.results(scorer.score(jobs, conditioning, settings, names))
        posterior = {"num_dimensions": scorer.num_dimensions, **settings.posterior_settings()}
        return ((i, decide(scored, names, notes=notes, **posterior)) for i, scored, notes in results)

    @check_keywords
    def score(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: str | Sequence[str],
        **options: Unpack[ScoreOptions],
    ) -> list[CaptionScore] | list[list[CaptionScore]]:
        """Score how well captions fit images; arguments as in `stream_scores`.

        Returns:
            For one image, and for pairs, a list with a score per caption; for several images a list of such lists.

        Raises:
            InputError: see `stream_scores`.
        """
        results = dict(self._scores(images, captions, **options))
        in_order = [results[i] for i in range(len(results))]
        if options.get("pairs"):
            return [score for scores in in_order for score in scores]
        return in_order[0] if is_one(images) else in_order

    @check_keywords
    def stream_scores(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: str | Sequence[str],
        **options: Unpack[ScoreOptions],
    ) -> Iterator[list[CaptionScore]]:
        """Score captions and yield those of each image as it is done, which need not be in the order of the images.

        Args:
            images: as in `stream`.
            captions: one or several for every image, or with `pairs` one per image. For a class-conditional model,
                class names.
            **options: see `ScoreOptions`, and `CaptionOptions` for all other settings.

        Yields:
            The scores of one image; if an image cannot be used, `failure` has the reason.

        Raises:
            InputError: captions or settings cannot be used; with `pairs`, the numbers of captions and images differ.
        """
        return (scores for _, scores in self._scores(images, captions, **options))

    def _scores(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: str | Sequence[str],
        *,
        pairs: bool = False,
        unconditional: bool = False,
        draws: int = 64,
        template: Template = None,
        average: Average = "error",
        **options: Unpack[CaptionOptions],
    ) -> Iterator[tuple[int, list[CaptionScore]]]:
        given = [captions] if isinstance(captions, str) else list(captions)
        sources = as_many(images)
        if pairs:
            sources = list(sources)
            if len(sources) != len(given):
                raise InputError(f"{len(sources)} images and {len(given)} captions are no pairs: give one for each")
        if not given:
            raise InputError("no caption was given")
        names = tuple(dict.fromkeys(given))
        settings = self.settings_for(names, strategy=Fixed(draws), **options)
        scale = scale_of(self.scorer.num_dimensions, settings.reduction, settings.temperature)
        found = self._scored_captions(
            sources, lambda i: (given[i],) if pairs else names, names, settings, unconditional, template, average
        )

        def scores(i: int, scored: ScoredImage) -> list[CaptionScore]:
            if pairs:
                return list(caption_scores(scored, given[i : i + 1], unconditional, scale))
            by_name = {score.caption: score for score in caption_scores(scored, names, unconditional, scale)}
            return [by_name[caption] for caption in given]

        return ((i, scores(i, scored)) for i, scored, _ in found)

    @check_keywords
    def choices(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: Sequence[Sequence[str]],
        *,
        among: Sequence[str] | None = None,
        unconditional: bool = False,
        template: Template = None,
        average: Average = "error",
        **options: Unpack[ScoringOptions],
    ) -> Iterator[tuple[int, Classification, ScoredImage]]:
        """Choose the caption that explains each image best, among captions of its own.

        Args:
            images: as in `stream`.
            captions: at least two per image.
            among: all captions to encode, in batches that do not depend on which images are left to do. Default: those
                of the images.
            unconditional: also evaluate the model's null condition. This needs a strategy that gives all captions all
                draws.
            template: as in `ClassifyOptions`.
            average: as in `ClassifyOptions`.
            **options: see `ScoringOptions`.

        Yields:
            Position of the image, its result, and the errors behind it: a row for each of its captions, and a last one
            for the null condition.

        Raises:
            InputError: captions or settings cannot be used.
        """
        if not captions:
            return iter(())
        for texts in captions:
            if len(set(texts)) < max(2, len(texts)):
                raise InputError(f"every image needs two captions or more, all different; one has {list(texts)}")
        names = among or list(dict.fromkeys(caption for texts in captions for caption in texts))
        settings = self.settings_for(max(captions, key=len), **options)

        def own(i: int) -> Sequence[str]:
            if i >= len(captions):
                raise InputError(f"captions were given for {len(captions)} images, and there are more")
            return captions[i]

        found = self._scored_captions(images, own, names, settings, unconditional, template, average)
        posterior = {"num_dimensions": self.scorer.num_dimensions, **settings.posterior_settings()}
        return (
            (i, choose_caption(scored, captions[i], unconditional, notes, **posterior), scored)
            for i, scored, notes in found
        )

    def _scored_captions(
        self,
        images: ImageSource | Iterable[ImageSource],
        own: Callable[[int], Sequence[str]],
        names: Sequence[str],
        settings: ScoringSettings,
        unconditional: bool,
        template: Template,
        average: Average,
    ) -> Iterator[tuple[int, ScoredImage, tuple[str, ...]]]:
        """Yield error tables with a row for each of the image's own captions, and a last one for the null condition."""
        scorer = self.scorer
        conditioning = scorer.candidates.encode(names, template, average)
        if unconditional:
            conditioning = scorer.candidates.with_null(conditioning)
        index = {name: i for i, name in enumerate(names)}

        def as_job(name: str, picture: Picture) -> ImageJob:
            rows = [index[caption] for caption in own(int(name))] + [len(names)] * unconditional
            return replace(scorer.job(name, picture), candidates=torch.tensor(rows), pad_to_all_classes=False)

        queue = ImageQueue(images, as_job, len(conditioning))
        return queue.results(scorer.score(queue.jobs(), conditioning, settings, [*names, "(none)"]))

    @check_keywords
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
        """Return raw errors at given timesteps and, optionally, for given noise: to check this library.

        Args:
            image: one image, or several.
            classes: K classes, at least one; without a template, a string is the prompt itself.
            timesteps: N timesteps.
            noise: (N, *), one for each timestep. Default: made from the seed and the image's content.
            loss: as in `CaptionOptions`.
            template: as in `ClassifyOptions`.
            average: as in `ClassifyOptions`.
            unconditional: add a last row with the errors of the model's null condition.
            seed: seed of the noise.

        Returns:
            (K, N), float32, for one image; (B, K, N) for several.

        Raises:
            InputError: an argument cannot be used, or a prediction is not finite even in float32.
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
        scorer, settings, names = self.scorer, ScoringSettings(Fixed(len(timesteps)), draws, loss), [*map(str, classes)]
        conditioning = scorer.candidates.encode(classes, template, average)
        if unconditional:
            conditioning, names = scorer.candidates.with_null(conditioning), [*names, "(none)"]
        jobs = (scorer.job(str(i), load_image(source, name_of(i, source))) for i, source in enumerate(sources))
        for scored in scorer.score(jobs, conditioning, settings, names):
            i = int(scored.name)
            if scored.failure is not None:
                raise InputError(f"{name_of(i, sources[i])}: {scored.failure}")
            tables[i] = scored.errors
        stacked = torch.stack([tables[i] for i in range(len(sources))])
        return stacked[0] if is_one(image) else stacked

    @check_keywords
    def settings_for(self, class_names: Sequence[str], **options: Unpack[ScoringOptions]) -> ScoringSettings:
        """Return the finished settings that `stream` uses for these candidates and options.

        Raises:
            InputError: a setting cannot be used.
        """
        return resolve_settings(self.denoiser, class_names, **options)
