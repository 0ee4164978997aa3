"""The engine: requests of many images → full network batches → float32 errors.

Shape legend: K classes, N draws, B rows of one network batch, U distinct noisy latents in it, * latent dimensions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import isfinite

import torch
from torch import Tensor

from ..denoisers.base import Conditioning, Denoiser
from ..denoisers.devices import out_of_memory, to_device
from ..denoisers.flops import shared_share
from ..diffusion.losses import BOUNDS, LOSSES, variational_bound
from ..diffusion.schedules import add_noise
from ..diffusion.timestep_weights import weights_at
from ..errors import InputError
from .image_search import ImageSearch, Pair
from .jobs import Cost, ImageJob, ScoredImage
from .settings import ScoringSettings

_Row = tuple[ImageSearch, Pair]


class _Batch:
    """Rows of one network call, and their errors (B, losses), float32, on the way to the CPU."""

    def __init__(self, rows: list[_Row], errors: Tensor) -> None:
        self.rows = rows
        self._arrived = None
        if errors.is_cuda:
            # Copied as soon as they are computed. A later copy would also wait for the batches behind this one.
            self._errors = torch.empty(errors.shape, pin_memory=True)
            self._errors.copy_(errors, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(errors.device))
        else:
            self._errors = errors.cpu()

    def read(self) -> list[list[float]]:
        """Wait for the errors and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[list[float]] = self._errors.tolist()
        return values


def score(
    denoiser: Denoiser,
    jobs: Iterable[ImageJob],
    conditioning: Conditioning,
    settings: ScoringSettings,
    *,
    batch_size: int = 64,
    class_names: Sequence[str] | None = None,
    ahead: int | None = None,
    full_batches: bool = False,
) -> Iterator[ScoredImage]:
    """Score images, each by its own search, and yield each as it is done.

    Every network batch is filled with the requests of the images in flight, oldest image first. The engine takes a new
    image only when the requests do not fill a batch. Memory grows with the batch size, but not with the number of
    classes, draws or images. When memory runs out, the batch size is halved and the work continues.

    Args:
        denoiser: the network.
        jobs: images, taken one by one.
        conditioning: encodings of K classes.
        settings: strategy, draws, losses and weights.
        batch_size: B, rows of one network call.
        class_names: K names, for messages; indices if None.
        ahead: number of batches given to the device before the errors of an earlier one are read, so that the device
            never waits for the CPU. Default: 1 on CUDA, otherwise 0.
        full_batches: give every batch the same number of rows, because the rounding of sums may depend on it. Batches
            are filled up with pairs that images may request next, then with rows that are not used.

    Raises:
        InputError: a loss that is unknown or not for this network; a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1; got {batch_size}")
    if ahead is None:
        ahead = 1 if denoiser.device.type == "cuda" else 0
    for loss in settings.losses:
        denoiser.check_loss(loss)
    return _Engine(denoiser, conditioning, settings, batch_size, class_names, ahead, full_batches).run(iter(jobs))


@dataclass
class _Engine:
    """The loop over batches; arguments as in `score`."""

    denoiser: Denoiser
    conditioning: Conditioning
    settings: ScoringSettings
    batch_size: int
    class_names: Sequence[str] | None
    ahead: int
    full_batches: bool

    @property
    def pairs(self) -> int:
        """Number of (class, draw) pairs whose prompts fill a batch."""
        return max(1, self.batch_size // self.conditioning.num_prompts)

    def run(self, jobs: Iterator[ImageJob]) -> Iterator[ScoredImage]:
        in_flight: deque[ImageSearch] = deque()
        pending: deque[_Batch] = deque()
        more = True
        while True:
            while more and sum(search.num_waiting for search in in_flight) < self.pairs:
                job = next(jobs, None)
                if job is None:
                    more = False
                    break
                search = self.start(job)
                if search.proceed():
                    in_flight.append(search)
                else:
                    yield self.result(search)
            rows: list[_Row] = []
            for search in in_flight:
                rows += [(search, pair) for pair in search.take(self.pairs - len(rows))]
                if len(rows) == self.pairs:
                    break
            if rows:
                if self.fills_up:
                    rows += self.guesses(in_flight, self.pairs - len(rows))
                pending += self.submit(rows)
            elif not pending:
                return
            for _ in range(max(len(pending) - self.ahead, 0 if rows else 1)):
                for search in self.collect(pending.popleft()):
                    if search.failure is None:
                        search.state = search.strategy.update(search.state, search.errors)
                        if search.proceed():
                            continue
                    in_flight.remove(search)
                    search.finished = True
                    yield self.result(search)

    @property
    def fills_up(self) -> bool:
        """Whether all batches have the same number of rows."""
        return self.full_batches or self.denoiser.compiled

    def guesses(self, in_flight: Iterable[ImageSearch], room: int) -> list[_Row]:
        """Return rows for the room left in a batch, from all images in turn: they are free, and some will be needed."""
        rows: list[_Row] = []
        before = -1
        while before < len(rows) < room:
            before = len(rows)
            for search in in_flight:
                rows += [(search, pair) for pair in search.guess(room - len(rows))]
        return rows

    def start(self, job: ImageJob) -> ImageSearch:
        strategy, num_classes = self.settings.strategy, len(self.conditioning)
        if job.candidates is not None:
            num_classes = len(job.candidates)
            strategy = strategy.among(num_classes)
        state = strategy.init(num_classes)
        schedule, weights = self.denoiser.schedule, self.settings.weights
        times = self.settings.draws.times(schedule, range(strategy.num_draws), job.key)
        if weights is not None:
            state = replace(state, weights=weights_at(weights, times / schedule.num_timesteps))
        latent = self.denoiser.encode(to_device(job.image[None], self.denoiser.device))[0]
        extra_losses = {loss: torch.full_like(state.errors, torch.nan) for loss in self.settings.extra_losses}
        return ImageSearch(job, latent, strategy, state, times, self.conditioning.num_prompts, extra_losses)

    def submit(self, rows: list[_Row]) -> Iterator[_Batch]:
        """Give rows to the network, in batches that fit into memory."""
        while rows:
            try:
                batch = _Batch(rows[: self.pairs], self.predict(rows[: self.pairs]))
            except (MemoryError, RuntimeError) as e:
                part = min(len(rows) * self.conditioning.num_prompts, self.batch_size)
                if part == 1 or not out_of_memory(e):
                    raise
                self.batch_size = part // 2
            else:
                rows = rows[len(batch.rows) :]
                yield batch

    def collect(self, batch: _Batch) -> list[ImageSearch]:
        """Store a batch's errors. Return the images that failed or whose request is complete, in the order of the rows.

        Only rows whose error is not finite are predicted again in float32, so that the errors of an image do not depend
        on the images that share its batch.
        """
        values = batch.read()
        broken = []
        for b, ((search, pair), row) in enumerate(zip(batch.rows, values, strict=True)):
            if not isfinite(row[0]):
                (broken.append(b) if search.wants(pair) else search.forget(pair))
        tried = str(self.denoiser.dtype).removeprefix("torch.")
        if broken and self.denoiser.dtype != torch.float32:
            batch_size = self.batch_size
            try:
                with self.denoiser.full_precision():
                    again = chain.from_iterable(part.read() for part in self.submit([batch.rows[b] for b in broken]))
                    for b, row in zip(broken, again, strict=True):
                        values[b] = row
                tried += ", nor in float32"
            except (MemoryError, RuntimeError) as e:  # these images fail; the others continue
                if not out_of_memory(e):
                    raise
                tried += ", and memory does not suffice for float32"
            self.batch_size = batch_size  # float32 may have needed smaller ones
        latents = set()
        for (search, pair), row in zip(batch.rows, values, strict=True):
            if search.wants(pair):
                latents.add((search, pair[1]))
                if not isfinite(row[0]) and search.failure is None:
                    c = search.class_of(pair)
                    search.failure = (
                        f"the prediction for class {self.class_names[c] if self.class_names else c} at t = "
                        f"{search.times[pair[1]]:g} is not finite in {tried}"
                    )
            elif not isfinite(row[0]):
                continue
            search.receive(pair, row)
        for search, _ in latents:
            search.num_latents += 1
        images = dict.fromkeys(search for search, _ in batch.rows)
        return [search for search in images if not search.finished and (search.failure is not None or search.answered)]

    @torch.inference_mode()
    def predict(self, rows: list[_Row]) -> Tensor:
        """Return errors (B, losses), float32, on the device. Rows of the same image and draw share one noisy latent."""
        num_rows, num_prompts = len(rows), self.conditioning.num_prompts
        if self.fills_up:
            rows = rows + rows[-1:] * (self.pairs - num_rows)
        denoiser, device = self.denoiser, self.denoiser.device
        position = {latent: u for u, latent in enumerate(dict.fromkeys((search, d) for search, (_, d) in rows))}
        t = torch.stack([search.times[d] for search, d in position])
        noise = [self.settings.draws.noise(d, search.job.key, search.latent.shape) for search, d in position]
        eps = to_device(torch.stack(noise), device)
        alpha, sigma = (to_device(a, device) for a in denoiser.schedule(t))
        noisy = add_noise(torch.stack([search.latent for search, _ in position]), eps, alpha, sigma)
        classes = torch.tensor([search.class_of(pair) for search, pair in rows])
        latent_index = torch.tensor([position[search, d] for search, (_, d) in rows])
        parts = zip(
            torch.split(self.conditioning.rows(classes), self.batch_size),
            torch.split(latent_index.repeat_interleave(num_prompts), self.batch_size),
            strict=True,
        )  # more than one only if a class has more prompts than a batch has rows
        with denoiser.fixed_rows(self.full_batches):
            errors = [
                self.distance(eps[to_device(index, device)], noisy, t, self.conditioning[prompts], index)
                for prompts, index in parts
            ]
        return torch.cat(errors).view(-1, num_prompts, len(self.settings.losses)).mean(1)[:num_rows]

    def distance(
        self, noise: Tensor, noisy: Tensor, t: Tensor, conditioning: Conditioning, latent_index: Tensor
    ) -> Tensor:
        """Return the errors (B, losses) of predictions; noise is (B, *), other arguments as in `Denoiser.predict`."""
        variance = None
        if BOUNDS.keys() & set(self.settings.losses):
            predicted, variance = self.denoiser.predict(noisy, t, conditioning, latent_index)
        else:
            predicted = self.denoiser.predict_noise(noisy, t, conditioning, latent_index)

        def error(loss: str) -> Tensor:
            if loss in LOSSES:
                return LOSSES[loss](noise, predicted)
            assert variance is not None
            bound = variational_bound(noise, predicted, variance, t[latent_index], self.denoiser.schedule)
            return bound + BOUNDS[loss] * LOSSES["l2"](noise, predicted)

        return torch.stack([error(loss) for loss in self.settings.losses], dim=1)

    def result(self, search: ImageSearch) -> ScoredImage:
        state, num_classes = search.state, len(self.conditioning)

        def among_all(values: Tensor, other: float) -> Tensor:
            if search.job.candidates is None or not search.job.pad_to_all_classes:
                return values
            everyone = values.new_full((num_classes, *values.shape[1:]), other)
            everyone[search.job.candidates] = values
            return everyone

        seconds = time.perf_counter() - search.started
        with self.denoiser.fixed_rows(self.full_batches):
            saved = shared_share(self.denoiser, self.conditioning) * (search.num_evaluations - search.num_latents)
        return ScoredImage(
            name=search.job.name,
            errors=among_all(state.errors, torch.nan),
            active=among_all(state.active, False),
            t=search.times,
            cost=search.job.cost + Cost(search.num_evaluations, search.num_evaluations - saved, seconds),
            failure=search.failure,
            doubt=None if state.doubt is None else among_all(state.doubt, 0.0),
            undecided=None if state.undecided is None else among_all(state.undecided, False),
            weights=state.weights,
            candidates=search.job.candidates,
            screening=search.job.cost,
            extra_losses={loss: among_all(table, torch.nan) for loss, table in search.extra_losses.items()},
        )
