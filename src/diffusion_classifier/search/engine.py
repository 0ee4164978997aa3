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
from ..diffusion.draws import Draws
from ..diffusion.losses import BOUNDS, LOSSES, variational_bound
from ..diffusion.schedules import Schedule, add_noise
from ..diffusion.timestep_weights import Weights, weights_at
from ..errors import InputError
from .image_search import ImageSearch, Pair
from .jobs import Cost, ImageJob, ScoredImage
from .strategies import Strategy

_Row = tuple[ImageSearch, Pair]


class _Batch:
    """Rows that the network was given, and their errors (B, losses), float32, on the way to the CPU."""

    def __init__(self, rows: list[_Row], errors: Tensor) -> None:
        self.rows = rows
        self._arrived = None
        if errors.is_cuda:
            # Copied as soon as they are there. A copy asked for later would wait for the batches behind this one too.
            self._errors = torch.empty(errors.shape, pin_memory=True)
            self._errors.copy_(errors, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(errors.device))
        else:
            self._errors = errors.cpu()

    def read(self) -> list[list[float]]:
        """Waits for the errors."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[list[float]] = self._errors.tolist()
        return values


def check_weights(weights: Weights | None, draws: Draws, schedule: Schedule, num_draws: int) -> None:
    """Complain of draws none of which counts.

    Raises:
        InputError: all of the first so many lie at times whose weight is 0.
    """
    if weights is None:
        return
    if not weights_at(weights, draws.times(schedule, range(num_draws), 0) / schedule.num_timesteps).any():
        raise InputError(
            f"the first {num_draws} draws lie at times whose weight is 0: choose other timesteps or weights"
        )


def score(
    denoiser: Denoiser,
    jobs: Iterable[ImageJob],
    conditioning: Conditioning,
    strategy: Strategy,
    *,
    draws: Draws | None = None,
    loss: str = "l2",
    weights: Weights | None = None,
    batch_size: int = 64,
    class_names: Sequence[str] | None = None,
    ahead: int | None = None,
    full_batches: bool = False,
    also: Sequence[str] = (),
) -> Iterator[ScoredImage]:
    """Score images, each by its own search, and yield each as it is done.

    Every network batch is filled from whatever the images in flight want next, oldest first; as many images are in
    flight as that takes, and no more. Memory grows with the batch size, not with the number of classes times draws
    nor with the number of images. When memory runs out the batch is halved and the work goes on.

    Args:
        denoiser: the network.
        jobs: images; taken one by one, as room is free.
        conditioning: of K classes.
        strategy: what to evaluate.
        draws: (t, ε) pairs; evenly spaced, seed 0 if None.
        loss: "l2", "l1" or "huber"; "vlb" or "l2+vlb" for a network that predicts the variance, too.
        weights: over time; uniform if None.
        batch_size: B, rows of one network call.
        class_names: K names, for messages; indices if None.
        ahead: batches that are given to the device before the errors of the one before them are read, so that the
            device never waits for the CPU; 1 on CUDA, else 0, if None.
        full_batches: fill up the last batches, with pairs that images may want next and then with rows that are not
            used, so that all have the same number: how a library sums up may depend on it.
        also: other losses, whose errors are kept for the same predictions.

    Raises:
        InputError: a loss that is unknown or not for this network; a batch size below 1.
    """
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1; got {batch_size}")
    if ahead is None:
        ahead = 1 if denoiser.device.type == "cuda" else 0
    for name in (loss, *also):
        denoiser.check_loss(name)
    losses = (loss, *also)
    engine = _Engine(
        denoiser, conditioning, draws or Draws(), losses, weights, batch_size, class_names, ahead, full_batches
    )
    return engine.run(iter(jobs), strategy)


@dataclass
class _Engine:
    """The loop of scoring and strategy; arguments as in `score`."""

    denoiser: Denoiser
    conditioning: Conditioning
    draws: Draws
    losses: tuple[str, ...]
    weights: Weights | None
    batch_size: int
    class_names: Sequence[str] | None
    ahead: int
    full_batches: bool

    @property
    def pairs(self) -> int:
        """Of class and draw, whose prompts fill a batch."""
        return max(1, self.batch_size // self.conditioning.num_prompts)

    def run(self, jobs: Iterator[ImageJob], strategy: Strategy) -> Iterator[ScoredImage]:
        flying: deque[ImageSearch] = deque()
        pending: deque[_Batch] = deque()
        more = True
        while True:
            while more and sum(f.num_waiting for f in flying) < self.pairs:
                job = next(jobs, None)
                if job is None:
                    more = False
                    break
                flying.append(self.start(job, strategy))
                flying[-1].proceed()
            rows: list[_Row] = []
            for f in flying:
                rows += [(f, pair) for pair in f.take(self.pairs - len(rows))]
                if len(rows) == self.pairs:
                    break
            if rows:
                if self.fills_up:
                    rows += self.guesses(flying, self.pairs - len(rows))
                pending += self.submit(rows)
            elif not pending:
                return
            for _ in range(max(len(pending) - self.ahead, 0 if rows else 1)):
                for f in self.collect(pending.popleft()):
                    if f.failure is None:
                        f.state = f.strategy.update(f.state, f.errors)
                        if f.proceed():
                            continue
                    flying.remove(f)
                    f.landed = True
                    yield self.result(f)

    @property
    def fills_up(self) -> bool:
        """Whether all batches have the same number of rows."""
        return self.full_batches or self.denoiser.compiled

    def guesses(self, flying: Iterable[ImageSearch], room: int) -> list[_Row]:
        """Rows for the room that is left in a batch, of all images alike: they cost nothing, some will be wanted."""
        rows: list[_Row] = []
        before = -1
        while before < len(rows) < room:
            before = len(rows)
            for f in flying:
                rows += [(f, pair) for pair in f.guess(room - len(rows))]
        return rows

    def start(self, job: ImageJob, strategy: Strategy) -> ImageSearch:
        num_classes = len(self.conditioning)
        if job.candidates is not None:
            num_classes = len(job.candidates)
            strategy = strategy.among(num_classes)
        state = strategy.init(num_classes)
        times = self.draws.times(self.denoiser.schedule, range(state.errors.shape[1]), job.key)
        if self.weights is not None:
            state = replace(state, weights=weights_at(self.weights, times / self.denoiser.schedule.num_timesteps))
        latent = self.denoiser.encode(to_device(job.image[None], self.denoiser.device))[0]
        also = {loss: torch.full_like(state.errors, torch.nan) for loss in self.losses[1:]}
        return ImageSearch(job, latent, strategy, state, times, self.conditioning.num_prompts, also)

    def submit(self, rows: list[_Row]) -> Iterator[_Batch]:
        """Give rows to the network, in batches that memory suffices for."""
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
        """Note the errors; the images whose request is done or that failed, in the order of the rows.

        Rows whose error is not finite are predicted again in float32, the others are not: what an image gets does not
        depend on those that share its batch.
        """
        values = batch.read()
        broken = []
        for b, ((f, pair), row) in enumerate(zip(batch.rows, values, strict=True)):
            if not isfinite(row[0]):
                (broken.append(b) if f.wants(pair) else f.forget(pair))
        tried = str(self.denoiser.dtype).removeprefix("torch.")
        if broken and self.denoiser.dtype != torch.float32:
            batch_size = self.batch_size
            try:
                with self.denoiser.full_precision():
                    again = chain.from_iterable(part.read() for part in self.submit([batch.rows[b] for b in broken]))
                    for b, row in zip(broken, again, strict=True):
                        values[b] = row
                tried += ", nor in float32"
            except (MemoryError, RuntimeError) as e:  # these images fail; the others go on
                if not out_of_memory(e):
                    raise
                tried += ", and memory does not suffice for float32"
            self.batch_size = batch_size  # float32 may have needed smaller ones
        latents = set()
        for (f, pair), row in zip(batch.rows, values, strict=True):
            if f.wants(pair):
                latents.add((f, pair[1]))
                if not isfinite(row[0]) and f.failure is None:
                    c = f.class_of(pair)
                    f.failure = (
                        f"the prediction for class {self.class_names[c] if self.class_names else c} at t = "
                        f"{f.times[pair[1]]:g} is not finite in {tried}"
                    )
            elif not isfinite(row[0]):
                continue
            f.receive(pair, row)
        for f, _ in latents:
            f.num_latents += 1
        images = dict.fromkeys(f for f, _ in batch.rows)
        return [f for f in images if not f.landed and (f.failure is not None or f.answered)]

    @torch.inference_mode()
    def predict(self, rows: list[_Row]) -> Tensor:
        """Errors (B, losses), float32, on the device. Rows of the same image and draw share one noisy latent."""
        num_rows, num_prompts = len(rows), self.conditioning.num_prompts
        if self.fills_up:
            rows = rows + rows[-1:] * (self.pairs - num_rows)
        denoiser, device = self.denoiser, self.denoiser.device
        position = {latent: u for u, latent in enumerate(dict.fromkeys((f, d) for f, (_, d) in rows))}
        t = torch.stack([f.times[d] for f, d in position])
        noise = [self.draws.noise(d, f.job.key, f.latent.shape) for f, d in position]
        eps = to_device(torch.stack(noise), device)
        alpha, sigma = (to_device(a, device) for a in denoiser.schedule(t))
        noisy = add_noise(torch.stack([f.latent for f, _ in position]), eps, alpha, sigma)
        classes = torch.tensor([f.class_of(pair) for f, pair in rows])
        latent_index = torch.tensor([position[f, d] for f, (_, d) in rows])
        parts = zip(
            torch.split(self.conditioning.rows(classes), self.batch_size),
            torch.split(latent_index.repeat_interleave(num_prompts), self.batch_size),
            strict=True,
        )  # more than one only where a class has more prompts than a batch has rows
        errors = [
            self.distance(eps[to_device(index, device)], noisy, t, self.conditioning[prompts], index)
            for prompts, index in parts
        ]
        return torch.cat(errors).view(-1, num_prompts, len(self.losses)).mean(1)[:num_rows]

    def distance(
        self, noise: Tensor, noisy: Tensor, t: Tensor, conditioning: Conditioning, latent_index: Tensor
    ) -> Tensor:
        """Errors (B, losses) of predictions; noise is (B, *), all else as in `Denoiser.predict`."""
        variance = None
        if BOUNDS.keys() & set(self.losses):
            predicted, variance = self.denoiser.predict(noisy, t, conditioning, latent_index)
        else:
            predicted = self.denoiser.predict_noise(noisy, t, conditioning, latent_index)

        def error(loss: str) -> Tensor:
            if loss in LOSSES:
                return LOSSES[loss](noise, predicted)
            assert variance is not None
            bound = variational_bound(noise, predicted, variance, t[latent_index], self.denoiser.schedule)
            return bound + BOUNDS[loss] * LOSSES["l2"](noise, predicted)

        return torch.stack([error(loss) for loss in self.losses], dim=1)

    def result(self, f: ImageSearch) -> ScoredImage:
        state, num_classes = f.state, len(self.conditioning)

        def among_all(values: Tensor, other: float) -> Tensor:
            if f.job.candidates is None or not f.job.whole:
                return values
            everyone = values.new_full((num_classes, *values.shape[1:]), other)
            everyone[f.job.candidates] = values
            return everyone

        saved = shared_share(self.denoiser, self.conditioning) * (f.num_evaluations - f.num_latents)
        return ScoredImage(
            name=f.job.name,
            errors=among_all(state.errors, torch.nan),
            active=among_all(state.active, False),
            t=f.times,
            spent=f.job.spent + Cost(f.num_evaluations, f.num_evaluations - saved, time.perf_counter() - f.started),
            failure=f.failure,
            doubt=None if state.doubt is None else among_all(state.doubt, 0.0),
            undecided=None if state.undecided is None else among_all(state.undecided, False),
            weights=state.weights,
            candidates=f.job.candidates,
            screening=f.job.spent,
            also={loss: among_all(table, torch.nan) for loss, table in f.also.items()},
        )
