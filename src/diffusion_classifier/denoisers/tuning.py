"""The batch size and memory layout in which a network runs at full speed, found by trying and remembered."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median

import torch

from .base import Conditioning, Denoiser
from .devices import out_of_memory

MIN_BATCH_SIZE, MAX_BATCH_SIZE = 8, 1024
PATIENCE = 10.0
"""Seconds of one network call from which on no larger batch is tried."""


@dataclass(frozen=True)
class Tuning:
    """How a network runs fastest on a device.

    Args:
        batch_size: rows of one call.
        channels_last: whether convolutions find the channels of a pixel side by side in memory.
    """

    batch_size: int
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch size {self.batch_size}")


def tune(denoiser: Denoiser, conditioning: Conditioning) -> int:
    """Give a network the memory layout in which it is fastest, and tell how many rows of one call are.

    Both are measured once for each (network, device, dtype), and kept in `tuning.json` in the cache folder,
    $XDG_CACHE_HOME/diffusion-classifier or ~/.cache/diffusion-classifier. They depend on the network's architecture,
    not on its weights.
    """
    if not denoiser.has_weights:
        return 64  # a closed form: nothing to measure
    network, device = denoiser.network, denoiser.device
    # What starts with an underscore says where a config came from, in an order that changes from process to process.
    config = {name: value for name, value in getattr(network, "config", {}).items() if not name.startswith("_")}
    what = [type(network).__name__, config, denoiser.latent_shape, str(denoiser.dtype)]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} {torch.get_num_threads()}"
    circumstances = json.dumps([what, platform.node(), where, torch.__version__], sort_keys=True, default=str)
    key = sha256(circumstances.encode()).hexdigest()[:16]
    file = _cache_file()
    tuning = _read(file).get(key)
    if tuning is None:
        tuning = measure(denoiser, conditioning)
        _write(file, _read(file) | {key: tuning})
    set_layout(denoiser, tuning.channels_last)
    return tuning.batch_size


def measure(denoiser: Denoiser, conditioning: Conditioning) -> Tuning:
    """Try batch sizes, then both layouts in turn at the best one."""
    set_layout(denoiser, False)
    rows = knee(lambda rows: seconds_of_call(denoiser, conditioning, rows))
    times: dict[bool, list[float]] = {False: [], True: []}
    try:
        for _ in range(3):
            for channels_last, taken in times.items():
                set_layout(denoiser, channels_last)
                taken.append(seconds_of_call(denoiser, conditioning, rows, calls=1))
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        return Tuning(rows)
    return Tuning(rows, median(times[True]) < 0.95 * median(times[False]))


def set_layout(denoiser: Denoiser, channels_last: bool) -> None:
    """Whether convolutions find the channels of a pixel side by side, which decides how sums are rounded."""
    if denoiser.has_weights and channels_last != denoiser.channels_last:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        denoiser.network.to(memory_format=layout)  # type: ignore[call-overload]
        denoiser.channels_last = channels_last


def knee(seconds: Callable[[int], float]) -> int:
    """The smallest batch size of 1, 2, 4 … that reaches 95 % of the best throughput, from 8 on where memory suffices.

    The search ends where two doublings brought less than 5 %, or one lost a fifth. Fewer than 8 rows never gain more
    than the clock's noise, and leave what is read of the weights, and what rows of a latent share, to a few.

    Args:
        seconds: of a call of so many rows. Where memory does not suffice for it, larger ones are not tried.
    """
    rates: list[float] = []  # of 1, 2, 4 … rows
    while (rows := 2 ** len(rates)) <= MAX_BATCH_SIZE:
        try:
            taken = seconds(rows)
        except (MemoryError, RuntimeError) as e:
            if not rates or not out_of_memory(e):
                raise
            break
        rates.append(rows / taken)
        flat = rows >= MIN_BATCH_SIZE and max(rates) < 1.05 * max(rates[:-2])
        if flat or taken > PATIENCE or rates[-1] < 0.8 * max(rates):
            break
    good = [1 << i for i, rate in enumerate(rates) if rate >= 0.95 * max(rates)]
    enough = [1 << i for i, rate in enumerate(rates) if rate >= 0.8 * max(rates) and 1 << i <= MIN_BATCH_SIZE]
    return max([good[0], *enough])


@torch.inference_mode()
def seconds_of_call(denoiser: Denoiser, conditioning: Conditioning, rows: int, calls: int = 5) -> float:
    """Median time of a prediction of so many rows, after one to warm up; fewer calls where they take long."""
    k, device = len(conditioning), denoiser.device
    latent_index = torch.arange(rows) // k
    noisy = torch.randn(int(latent_index[-1]) + 1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    noisy = noisy.to(device)
    t = denoiser.schedule.timesteps(torch.full((len(noisy),), 0.5))
    row_conditioning = conditioning[torch.arange(rows) % k]
    times: list[float] = []
    while len(times) < calls + 1 and (len(times) < 2 or sum(times) < 2):
        start = time.perf_counter()
        # Read back: only then has a GPU done its work.
        denoiser.predict_noise(noisy, t, row_conditioning, latent_index)[-1].cpu()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diffusion-classifier" / "tuning.json"


def _read(file: Path) -> dict[str, Tuning]:
    try:
        return {key: Tuning(**values) for key, values in json.loads(file.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(file: Path, content: dict[str, Tuning]) -> None:
    with suppress(OSError):  # where nothing can be written it is measured anew each time
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({key: asdict(tuning) for key, tuning in content.items()}, indent=1), "utf-8")
        os.replace(temporary, file)
