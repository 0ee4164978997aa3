"""The engine: requests of many images → full network batches → float32 errors.

Shape legend: K classes, N draws, B rows of one network batch, U distinct noisy latents in it, * latent dimensions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from .denoisers.base import Conditioning, Denoiser
from .draws import Draws
from .exceptions import InputError
from .schedules import add_noise
from .strategies import Request, State, Strategy

Loss = Callable[[Tensor, Tensor], Tensor]


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1)


LOSSES: dict[str, Loss] = {
    "l2": lambda a, b: _mean((a - b).square()),
    "l1": lambda a, b: _mean((a - b).abs()),
    # Threshold 1, as torch.nn.functional.huber_loss has it.
    "huber": lambda a, b: _mean(torch.nn.functional.huber_loss(a, b, reduction="none")),
}
"""Distance between ε and ε̂, both (B, *) and float32, as a mean over dimensions: (B,)."""


@dataclass(frozen=True)
class Job:
    """One image to score.

    Args:
        name: of the image, for messages.
        image: (3, H, W), float32, in [-1, 1].
        key: 64-bit hash of the image's content, which its noise depends on.
    """

    name: str
    image: Tensor
    key: int


@dataclass(frozen=True)
class Scored:
    """What was found out about one image.

    Args:
        name: of the image.
        errors: error table (K, N), float32, on the CPU, NaN where never evaluated.
        active: (K,), bool: the classes that were not eliminated.
        t: (N,), the timestep of each draw.
        num_evaluations: network predictions spent.
        seconds: from the first prediction to the last; images in flight together share this time.
        failure: why there is no answer; None if there is one.
    """

    name: str
    errors: Tensor
    active: Tensor
    t: Tensor
    num_evaluations: int
    seconds: float
    failure: str | None = None


@dataclass(eq=False)
class _InFlight:
    """An image with its search: which pair comes next, and what came back of the request under way."""

    job: Job
    latent: Tensor
    state: State
    started: float = field(default_factory=time.perf_counter)
    num_evaluations: int = 0
    failure: str | None = None

    def begin(self, request: Request) -> None:
        self.request = request
        self.errors = torch.empty(len(request.classes), len(request.draws))
        self.next = self.done = 0

    @property
    def num_waiting(self) -> int:
        return self.errors.numel() - self.next

    def take(self, limit: int) -> list[tuple[int, int]]:
        """The next pairs (row, column) of the request, draw by draw, so that rows of one noisy latent lie together."""
        k, last = len(self.request.classes), min(self.next + limit, self.errors.numel())
        pairs = [(i % k, i // k) for i in range(self.next, last)]
        self.next = last
        return pairs


_Row = tuple[_InFlight, int, int]
"""An image, and a row and a column of the errors that its request asks for."""


def score(
    denoiser: Denoiser,
    jobs: Iterable[Job],
    conditioning: Conditioning,
    strategy: Strategy,
    *,
    draws: Draws | None = None,
    loss: str = "l2",
    batch_size: int = 64,
    class_names: Sequence[str] | None = None,
) -> Iterator[Scored]:
    """Score images, each by its own search, and yield each as it is done.

    Every network batch is filled from whatever the images in flight want next, oldest first; as many images are in
    flight as that takes, and no more. Memory grows with the batch size, not with the number of classes times draws
    nor with the number of images. When memory runs out the batch is halved and the work goes on.

    Args:
        denoiser: the network.
        jobs: images; taken one by one, as room is free.
        conditioning: K rows, one a class.
        strategy: what to evaluate.
        draws: (t, ε) pairs; evenly spaced, seed 0 if None.
        loss: "l2", "l1" or "huber".
        batch_size: B, rows of one network call.
        class_names: K names, for messages; indices if None.

    Raises:
        InputError: an unknown loss, a batch size below 1.
    """
    if loss not in LOSSES:
        raise InputError(f"loss {loss!r} is not one of {', '.join(LOSSES)}")
    if batch_size < 1:
        raise InputError(f"the batch size must be at least 1; got {batch_size}")
    return _run(denoiser, jobs, conditioning, strategy, draws or Draws(), LOSSES[loss], batch_size, class_names)


def _run(
    denoiser: Denoiser,
    jobs: Iterable[Job],
    conditioning: Conditioning,
    strategy: Strategy,
    draws: Draws,
    loss: Loss,
    batch_size: int,
    class_names: Sequence[str] | None,
) -> Iterator[Scored]:
    queue, flying = iter(jobs), deque[_InFlight]()
    more = True
    while True:
        while more and sum(f.num_waiting for f in flying) < batch_size:
            job = next(queue, None)
            if job is None:
                more = False
                break
            flying.append(_launch(denoiser, job, strategy, len(conditioning)))
        if not flying:
            return
        rows: list[_Row] = []
        for f in flying:
            rows += [(f, i, j) for i, j in f.take(batch_size - len(rows))]
            if len(rows) == batch_size:
                break
        errors, batch_size = _evaluate(denoiser, rows, conditioning, draws, loss, batch_size)
        for (f, i, j), value in zip(rows, errors.tolist(), strict=True):
            f.errors[i, j] = value
            f.done += 1
            f.num_evaluations += 1
            if not isfinite(value) and f.failure is None:
                c = int(f.request.classes[i])
                t = float(draws.times(denoiser.schedule, [f.request.draws[j]], f.job.key))
                dtypes = dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in (denoiser.dtype, torch.float32))
                f.failure = (
                    f"the prediction for class {class_names[c] if class_names else c} at t = {t:g} is not finite in "
                    + ", nor in ".join(dtypes)
                )
        for f in list(flying):
            if f.failure is None and f.done == f.errors.numel():
                f.state = strategy.update(f.state, f.errors)
                request = strategy.propose(f.state)
                if request is not None:
                    f.begin(request)
                    continue
            elif f.failure is None:
                continue
            flying.remove(f)
            times = draws.times(denoiser.schedule, range(f.state.errors.shape[1]), f.job.key)
            seconds = time.perf_counter() - f.started
            yield Scored(f.job.name, f.state.errors, f.state.active, times, f.num_evaluations, seconds, f.failure)


def _launch(denoiser: Denoiser, job: Job, strategy: Strategy, num_classes: int) -> _InFlight:
    latent = denoiser.encode(job.image[None].to(denoiser.device))[0]
    state = strategy.init(num_classes)
    request = strategy.propose(state)
    assert request is not None
    flight = _InFlight(job, latent, state)
    flight.begin(request)
    return flight


def _evaluate(
    denoiser: Denoiser,
    rows: list[_Row],
    conditioning: Conditioning,
    draws: Draws,
    loss: Loss,
    batch_size: int,
) -> tuple[Tensor, int]:
    """Errors (B,), float32, on the CPU, and the batch size that memory sufficed for.

    Rows whose error is not finite are predicted again in float32, the others are not: what an image gets does not
    depend on those that share its batch.
    """
    results: list[Tensor] = []
    done = 0
    while done < len(rows):
        part = rows[done : done + batch_size]
        try:
            errors = _predict(denoiser, part, conditioning, draws, loss)
            broken = ~errors.isfinite()
            if denoiser.dtype != torch.float32 and bool(broken.any()):
                again = [row for row, wanted in zip(part, broken.tolist(), strict=True) if wanted]
                with denoiser.full_precision():
                    errors = errors.masked_scatter(broken, _predict(denoiser, again, conditioning, draws, loss))
        except (MemoryError, RuntimeError) as e:
            if len(part) == 1 or not _out_of_memory(e):
                raise
            batch_size = len(part) // 2
            continue
        results.append(errors)
        done += len(part)
    return torch.cat(results), batch_size


def _out_of_memory(e: Exception) -> bool:
    # The allocators of the CPU and of Apple's GPUs raise a plain RuntimeError.
    signs = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(e, MemoryError | torch.OutOfMemoryError) or any(sign in str(e) for sign in signs)


@torch.inference_mode()
def _predict(denoiser: Denoiser, rows: list[_Row], conditioning: Conditioning, draws: Draws, loss: Loss) -> Tensor:
    """Errors (B,), float32, on the CPU. Rows of the same image and draw share one noisy latent."""
    device = denoiser.device
    pairs = [(f, f.request.draws[j]) for f, _, j in rows]
    position = {pair: u for u, pair in enumerate(dict.fromkeys(pairs))}
    t = torch.cat([draws.times(denoiser.schedule, [draw], f.job.key) for f, draw in position])
    eps = torch.stack([draws.noise(draw, f.job.key, f.latent.shape) for f, draw in position]).to(device)
    alpha, sigma = (a.to(device) for a in denoiser.schedule(t))
    noisy = add_noise(torch.stack([f.latent for f, _ in position]), eps, alpha, sigma)
    classes = torch.stack([f.request.classes[i] for f, i, _ in rows])
    latent_index = torch.tensor([position[pair] for pair in pairs])
    predicted = denoiser.predict_noise(noisy, t, conditioning[classes], latent_index)
    return loss(eps[latent_index.to(device)], predicted).cpu()
