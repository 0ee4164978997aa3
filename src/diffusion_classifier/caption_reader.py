"""Reading captions: how well they fit images, and which of its own fits an image best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from .data.images import ImageSource, Picture
from .denoisers import Average
from .diffusion.draws import Draws
from .errors import InputError
from .search.candidates import Template
from .search.caption_scores import CaptionScore, caption_scores, choose_caption
from .search.classification import Classification
from .search.image_queue import ImageQueue, as_many, is_one
from .search.jobs import ImageJob, ScoredImage
from .search.posterior import scale_of
from .search.scorer import Scorer
from .search.settings import ScoringSettings
from .search.strategies import Fixed


class CaptionReader(Scorer):
    """What `DiffusionClassifier` does with captions. Arguments as in `Scorer`."""

    def score(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: str | Sequence[str],
        *,
        pairs: bool = False,
        unconditional: bool = False,
        draws: int = 64,
        **options: Any,
    ) -> list[CaptionScore] | list[list[CaptionScore]]:
        """How well captions fit images; arguments as in `stream_scores`.

        Returns:
            For one image, and for pairs, a list of scores, one a caption; for several images one such list each.

        Raises:
            InputError: as `stream_scores`.
        """
        results = dict(
            self._stream_scores(images, captions, pairs=pairs, unconditional=unconditional, draws=draws, **options)
        )
        in_order = [results[i] for i in range(len(results))]
        if pairs:
            return [score for scores in in_order for score in scores]
        return in_order[0] if is_one(images) else in_order

    def stream_scores(
        self, images: ImageSource | Iterable[ImageSource], captions: str | Sequence[str], **options: Any
    ) -> Iterator[list[CaptionScore]]:
        """Score captions and yield those of each image as it is done, which need not be in the order of the images.

        Args:
            images: as in `DiffusionClassifier.stream`.
            captions: one or several, for every image; or with `pairs` as many as there are images, one for each. Names
                of classes for a class-conditional model.
            pairs: whether each image has its own caption.
            unconditional: compare with the model's null condition, for scores that are comparable between images, at
                the cost of one more caption an image.
            draws: of every caption.
            template: as in `DiffusionClassifier.stream`.
            average: as in `DiffusionClassifier.stream`.
            **options: timesteps, loss, weights, seed, reduction and temperature, as in `DiffusionClassifier.stream`.

        Yields:
            Scores of one image; for one that cannot be used, with the reason in `failure`.

        Raises:
            InputError: captions or settings cannot be used; with `pairs` not as many captions as images.
        """
        return (scores for _, scores in self._stream_scores(images, captions, **options))

    def _stream_scores(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: str | Sequence[str],
        *,
        pairs: bool = False,
        unconditional: bool = False,
        draws: int = 64,
        template: Template = None,
        average: Average = "error",
        **options: Any,
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
        reading = self.reading(names, strategy=Fixed(draws), **options)
        found = self._scored_captions(
            sources, lambda i: (given[i],) if pairs else names, names, reading, unconditional=unconditional,
            template=template, average=average,
        )  # fmt: skip
        scale = scale_of(self.num_dimensions, reading.reduction, reading.temperature)

        def scores(i: int, scored: ScoredImage) -> list[CaptionScore]:
            if pairs:
                return list(caption_scores(scored, given[i : i + 1], unconditional, scale))
            by_name = {score.caption: score for score in caption_scores(scored, names, unconditional, scale)}
            return [by_name[caption] for caption in given]

        return ((i, scores(i, scored)) for i, scored, _ in found)

    def choices(
        self,
        images: ImageSource | Iterable[ImageSource],
        captions: Sequence[Sequence[str]],
        *,
        among: Sequence[str] | None = None,
        unconditional: bool = False,
        template: Template = None,
        average: Average = "error",
        also: Sequence[str] = (),
        **options: Any,
    ) -> Iterator[tuple[int, Classification, ScoredImage]]:
        """Which of its own captions explains each image best.

        Args:
            images: as in `DiffusionClassifier.stream`.
            captions: of each image, at least two.
            among: all captions that are encoded, together, so that the same batches encode them whatever images are
                left to do; those of the images if None.
            unconditional: evaluate the model's null condition, too; makes sense where all captions get all draws.
            template: as in `DiffusionClassifier.stream`, and so the others.
            average: see there.
            also: see there.
            **options: see there; no prior.

        Yields:
            Position of the image, the answer, and what it was made of: error tables of the image's captions, and of the
            null condition in the last row.

        Raises:
            InputError: captions or settings cannot be used.
        """
        if not captions:
            return iter(())
        for texts in captions:
            if len(set(texts)) < max(2, len(texts)):
                raise InputError(f"every image needs two captions or more, all different; one has {list(texts)}")
        names = list(dict.fromkeys(caption for texts in captions for caption in texts)) if among is None else among
        reading = self.reading(max(captions, key=len), **options)

        def own(i: int) -> Sequence[str]:
            if i >= len(captions):
                raise InputError(f"captions were given for {len(captions)} images, and there are more")
            return captions[i]

        found = self._scored_captions(
            images, own, names, reading, unconditional=unconditional, template=template, average=average, also=also
        )
        settings = {"num_dimensions": self.num_dimensions, **reading.posterior_settings()}
        return (
            (i, choose_caption(scored, captions[i], unconditional, notes, **settings), scored)
            for i, scored, notes in found
        )

    def _scored_captions(
        self,
        images: ImageSource | Iterable[ImageSource],
        own: Callable[[int], Sequence[str]],
        names: Sequence[str],
        reading: ScoringSettings,
        *,
        unconditional: bool,
        template: Template,
        average: Average,
        also: Sequence[str] = (),
    ) -> Iterator[tuple[int, ScoredImage, tuple[str, ...]]]:
        """Tables of images: a row for each caption that is the image's own, and the last for the null condition."""
        conditioning = self._candidates.encode(names, template, average)
        if unconditional:
            conditioning = self._candidates.with_null(conditioning)
        index = {name: i for i, name in enumerate(names)}

        def as_job(name: str, picture: Picture) -> ImageJob:
            rows = [index[caption] for caption in own(int(name))] + [len(names)] * unconditional
            return replace(self._job(name, picture), candidates=torch.tensor(rows), whole=False)

        queue = ImageQueue(images, as_job, len(conditioning))
        draws = Draws(reading.timesteps, reading.seed)
        words, strategy, loss = [*names, "(none)"], reading.strategy, reading.loss
        scores = self._score(queue.jobs(), conditioning, strategy, draws, loss, words, reading.weights, also)
        return queue.results(scores)
