"""Find the fastest batch size and memory layout of a network by measurement, and remember them."""

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
"""Seconds of one network call above which no larger batch is tried."""


@dataclass(frozen=True)
class Tuning:
    """Fastest settings of a network on a device.

    Args:
        batch_size: number of rows per call.
        channels_last: whether the channels of a pixel are contiguous in memory.
    """

    batch_size: int
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"batch size {self.batch_size}")


def tune(denoiser: Denoiser, conditioning: Conditioning) -> int:
    """Set the fastest memory layout of a network, and return its fastest batch size.

    Both are measured once for each (network, device, dtype), and kept in `tuning.json` in the cache folder,
    $XDG_CACHE_HOME/diffusion-classifier or ~/.cache/diffusion-classifier. They depend on the network's architecture,
    and not on its weights.
    """
    if not denoiser.has_weights:
        return 64  # a closed form: nothing to measure
    network, device = denoiser.network, denoiser.device
    # Entries that start with an underscore state where a config came from, in an order that varies between processes.
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
    """Measure batch sizes, then both layouts in turn with the best one."""
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
    """Make the channels of a pixel contiguous in memory or not, which decides how sums are rounded."""
    if denoiser.has_weights and channels_last != denoiser.channels_last:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        denoiser.network.to(memory_format=layout)  # type: ignore[call-overload]
        denoiser.channels_last = channels_last


def knee(seconds: Callable[[int], float]) -> int:
    """Return the smallest batch size of 1, 2, 4 … with 95% of the best throughput, at least 8 if memory suffices.

    The search ends if two doublings gained less than 5%, or one lost a fifth. Below 8 rows, gains are timing noise,
    while reading the weights and the shared prefix is amortised over too few rows.

    Args:
        seconds: function from the number of rows to the seconds of a call. If memory runs out, larger sizes are not
            tried.
    """
    rates: list[float] = []  # rows per second for 1, 2, 4 … rows
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
    """Return the median time of a prediction of `rows` rows, after a warm-up. Slow networks are called fewer times."""
    k, device = len(conditioning), denoiser.device
    latent_index = torch.arange(rows) // k
    noisy = torch.randn(int(latent_index[-1]) + 1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    noisy = noisy.to(device)
    t = denoiser.schedule.timesteps(torch.full((len(noisy),), 0.5))
    row_conditioning = conditioning[torch.arange(rows) % k]
    times: list[float] = []
    while len(times) < calls + 1 and (len(times) < 2 or sum(times) < 2):
        start = time.perf_counter()
        # Read the result back, because calls to a GPU return before it has finished.
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
    with suppress(OSError):  # if the cache cannot be written, measure again each time
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps({key: asdict(tuning) for key, tuning in content.items()}, indent=1), "utf-8")
        os.replace(temporary, file)
