"""Simulate how long a run takes on many GPUs, from measured costs.

    python benchmarks/scale.py --run runs/fashion --gpus 8 64 1000

Workers take chunks of images from one queue, as in `evaluate --ray`. The time per image varies as in a measured run. A
worker that fails loses its chunk, which another worker computes again, and returns after it has loaded the model. The
driver writes each row. The script prints one JSON line per number of GPUs.
"""

import argparse
import heapq
import json
from pathlib import Path

import numpy as np

from diffusion_classifier.runs import ROWS_PER_SHARD, chunk_for, read_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, required=True, help="run folder whose evaluations per image are sampled")
parser.add_argument("--images", type=int, default=50_000, help="number of images (default: %(default)s)")
parser.add_argument("--evaluations", type=float, default=3000, help="mean evaluations per image (default: %(default)s)")
parser.add_argument("--rate", type=float, default=200.0, help="evaluations per second per GPU (default: %(default)s)")
parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 1000], help="default: 8 64 1000")
parser.add_argument("--chunk", type=int, help="images per chunk (default: as evaluate chooses)")
parser.add_argument(
    "--batch",
    type=int,
    default=64,
    help="rows per network call; the last calls of a chunk are not full (default: %(default)s)",
)
parser.add_argument(
    "--load", type=float, default=120.0, help="seconds in which a worker loads the model (default: %(default)s)"
)
parser.add_argument("--failures", type=float, default=0.01, help="failures per worker and hour (default: %(default)s)")
parser.add_argument(
    "--slow",
    type=float,
    default=0.1,
    help="relative standard deviation of the speed of workers (default: %(default)s)",
)
parser.add_argument(
    "--row", type=float, default=0.0005, help="seconds in which the driver writes a row (default: %(default)s)"
)
parser.add_argument("--megabytes", type=float, default=0.12, help="megabytes per image (default: %(default)s)")
parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
options = parser.parse_args()

spent = read_rows(options.run, ["num_evaluations"])["num_evaluations"].drop_null().to_numpy()


def simulate(gpus: int) -> dict[str, float]:
    """Simulate one run and return its statistics."""
    rng = np.random.default_rng(options.seed)
    chunk = options.chunk or chunk_for(options.images, gpus)
    costs = rng.choice(spent, options.images) * options.evaluations / spent.mean()
    chunks = [costs[i : i + chunk] for i in range(0, options.images, chunk)]
    # When most images of a chunk are done, batches are padded with unused rows. The number of padded batches is about
    # the number of rounds by which the longest image exceeds the mean.
    work = [float(c.sum() + (c.max() - c.mean()) * min(1.0, options.batch / len(c) / 10)) for c in chunks]
    speed = options.rate * np.clip(rng.normal(1, options.slow, gpus), 0.3, None)
    queue = list(range(len(chunks)))[::-1]
    free = [(options.load, w) for w in range(gpus)]
    heapq.heapify(free)
    busy, lost, failures, end, last_start = 0.0, 0.0, 0, 0.0, 0.0
    done: list[tuple[float, int]] = []
    while queue:
        now, worker = heapq.heappop(free)
        c = queue.pop()
        last_start = max(last_start, now)
        seconds = work[c] / speed[worker]
        dies = rng.exponential(3600 / options.failures) if options.failures else np.inf
        if dies < seconds:
            failures += 1
            lost += dies
            queue.append(c)
            heapq.heappush(free, (now + dies + options.load, worker))
            continue
        busy += seconds
        end = max(end, now + seconds)
        done.append((now + seconds, len(chunks[c])))
        heapq.heappush(free, (now + seconds, worker))
    written, waits = 0.0, 0.0
    for at, rows in sorted(done):
        written = max(written, at) + rows * options.row
        waits = max(waits, written - at)
    wall = max(end, written)
    ideal = costs.sum() / options.rate / gpus
    return {
        "gpus": gpus,
        "chunk": chunk,
        "hours": round(wall / 3600, 3),
        "gpu_hours": round(wall * gpus / 3600, 1),
        "efficiency": round(ideal / wall, 3),
        "load_share": round(options.load / wall, 3),
        "tail_share": round((end - last_start) / wall, 3),
        "failures": failures,
        "lost_share": round(lost / (wall * gpus), 4),
        "driver_busy": round(options.images * options.row / wall, 4),
        "longest_wait_for_the_driver": round(waits, 2),
        "megabytes_a_second": round(options.images * options.megabytes / wall, 2),
        "shards": -(-options.images // ROWS_PER_SHARD),
    }


for gpus in options.gpus:
    print(json.dumps(simulate(gpus)), flush=True)
