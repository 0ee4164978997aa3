"""The batch size at which a network runs at full speed, found by trying and remembered."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from statistics import median

import torch

from .denoisers.base import Conditioning, Denoiser
from .devices import out_of_memory

MAX_BATCH_SIZE = 1024
PATIENCE = 2.0
"""Seconds of one network call from which on no larger batch is tried: such a batch is busy with computing."""


def best_batch_size(denoiser: Denoiser, conditioning: Conditioning) -> int:
    """Rows of one network call that are predicted fastest; measured once for each (network, device, dtype).

    What is measured is kept in `batch_sizes.json` in the cache folder, $XDG_CACHE_HOME/diffusion-classifier or
    ~/.cache/diffusion-classifier. It depends on the network's architecture, not on its weights.
    """
    network = denoiser.network
    if not any(True for _ in network.parameters()):
        return 64  # a closed form: nothing to measure
    device = denoiser.device
    what = [type(network).__name__, dict(getattr(network, "config", {})), denoiser.latent_shape, str(denoiser.dtype)]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} {torch.get_num_threads()}"
    circumstances = json.dumps([what, platform.node(), where, torch.__version__], sort_keys=True, default=str)
    key = sha256(circumstances.encode()).hexdigest()[:16]
    file = _cache_file()
    known = _read(file)
    if key not in known:
        known[key] = knee(lambda rows: seconds_of_call(denoiser, conditioning, rows))
        _write(file, _read(file) | {key: known[key]})
    return known[key]


def knee(seconds: Callable[[int], float]) -> int:
    """The smallest batch size of 1, 2, 4 … that reaches 95 % of the best throughput.

    Args:
        seconds: of a call of so many rows. Where memory does not suffice for it, larger ones are not tried.
    """
    rates: dict[int, float] = {}
    rows = 1
    while rows <= MAX_BATCH_SIZE:
        try:
            taken = seconds(rows)
        except (MemoryError, RuntimeError) as e:
            if not rates or not out_of_memory(e):
                raise
            break
        rates[rows] = rows / taken
        if taken > PATIENCE or rates[rows] < 0.8 * max(rates.values()):
            break
        rows *= 2
    return min(rows for rows, rate in rates.items() if rate >= 0.95 * max(rates.values()))


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
    while len(times) < calls + 1 and (len(times) < 2 or sum(times) < PATIENCE):
        start = time.perf_counter()
        # Read back: only then has a GPU done its work.
        denoiser.predict_noise(noisy, t, row_conditioning, latent_index)[-1].cpu()
        times.append(time.perf_counter() - start)
    return median(times[1:])


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "diffusion-classifier" / "batch_sizes.json"


def _read(file: Path) -> dict[str, int]:
    try:
        content = json.loads(file.read_text("utf-8"))
        return {str(k): int(v) for k, v in content.items() if 1 <= int(v) <= MAX_BATCH_SIZE}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(file: Path, content: dict[str, int]) -> None:
    with suppress(OSError):  # where nothing can be written it is measured anew each time
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1), "utf-8")
        os.replace(temporary, file)
