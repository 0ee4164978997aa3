"""Measure the speed of the engine, as ratios to the plain reference loop in the same run.

    python benchmarks/run.py            # all rows, about an hour on two cores; writes benchmarks/results.json
    python benchmarks/run.py --only dit # one part; keeps the other rows of results.json
    python benchmarks/run.py --quick    # a short version of a minute, without the search for the best batch size

The script prints one JSON line per row: name, ratio, target, and medians with their spread (lowest and highest). Each
repeat runs the engine and its baselines in turn, so that a slow phase of the machine affects all of them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from models import dit, small_dit, small_stable_diffusion, stable_diffusion_2
from reference import PUBLISHED, SHORT, reference
from rich.progress import track

from diffusion_classifier import DiffusionClassifier, Fixed, load_denoiser
from diffusion_classifier.analysis import num_evaluations, peak_tflops
from diffusion_classifier.data import load_image, load_sample, preprocess
from diffusion_classifier.denoisers import (
    Conditioning,
    Denoiser,
    count_flops,
    resolve_device,
    resolve_dtype,
    seconds_of_call,
    tune,
)
from diffusion_classifier.diffusion import Draws
from diffusion_classifier.search import ImageJob, ScoringSettings, score

DEVICE = resolve_device()
QUICK_BATCH_SIZE = 32  # as in the reference loop
PLAIN_DTYPE = torch.float16 if DEVICE.type == "cuda" else torch.float32
Row = dict[str, Any]


def row(name: str, target: float | None, values: list[float], **details: Any) -> Row:
    """Return one row of the results, with the median and the spread of these ratios."""
    return {
        "name": name,
        "ratio": round(median(values), 4),
        "target": target,
        "spread": [round(min(values), 4), round(max(values), 4)],
        **details,
    }


def summary(values: list[float]) -> dict[str, Any]:
    """Return the median, the lowest and the highest value."""
    return {"median": round(median(values), 3), "spread": [round(min(values), 3), round(max(values), 3)]}


def engine(
    denoiser: Denoiser, jobs: list[ImageJob], conditioning: Conditioning, strategy: Any, batch_size: int
) -> tuple[int, float]:
    """Run the engine. Return the number of evaluations, and their cost in full evaluations."""
    results = list(score(denoiser, jobs, conditioning, ScoringSettings(strategy), batch_size=batch_size))
    return sum(r.cost.num_evaluations for r in results), sum(r.cost.full_evaluations for r in results)


def plain(denoiser: Denoiser, jobs: list[ImageJob], conditioning: Conditioning, strategy: Any) -> tuple[int, float]:
    """Run the reference loop. Return the number of evaluations, and their cost in full evaluations."""
    tables = [reference(denoiser, job.image, job.key, conditioning, strategy, Draws())[0] for job in jobs]
    evaluations = sum(int((~table.isnan()).sum()) for table in tables)
    return evaluations, evaluations


def compare(
    name: str,
    fast: Denoiser,
    jobs: list[list[ImageJob]],
    conditioning: Conditioning,
    strategy: Any,
    targets: list[float],
    batch_size: int | None = None,
) -> Iterator[Row]:
    """Compare the engine in its own dtype with the reference loop.

    The loop runs in float32 on a CPU and float16 on CUDA, and in the engine's dtype where that differs.

    Args:
        name: name of the workload.
        fast: denoiser in the engine's dtype.
        jobs: images of each repeat.
        conditioning: conditioning of the classes.
        strategy: strategy of the engine and of the loop.
        targets: targets of the two ratios, and of the share of the matrix-product peak. A missing one is not measured.
        batch_size: rows per network call of the engine. Default: the fastest, which is measured.
    """
    dtypes = dict.fromkeys([PLAIN_DTYPE, fast.dtype] if len(targets) > 1 else [PLAIN_DTYPE])
    # Copied first, because `tune` changes the memory layout of the network.
    slow = {dtype: deepcopy(fast).to(DEVICE, dtype) for dtype in dtypes}
    batch_size = batch_size or tune(fast, conditioning)
    one = torch.zeros(1, dtype=torch.int64)
    flops = count_flops(fast, conditioning[one], one)
    contenders: dict[str, Callable[[list[ImageJob]], tuple[int, float]]] = {
        "engine": lambda part: engine(fast, part, conditioning, strategy, batch_size)
    }
    for dtype, loop in slow.items():
        name_of_loop = f"reference in {str(dtype).removeprefix('torch.')}"
        contenders[name_of_loop] = partial(plain, loop, conditioning=conditioning, strategy=strategy)
    rates: dict[str, list[float]] = {key: [] for key in contenders}  # evaluations per second
    outside, shares, peaks = [], [], []
    for work in contenders.values():  # warm-up
        work(jobs[0][:1])
    for part in track(jobs, description=name, transient=True):
        if len(targets) > 2:
            peaks.append(peak_tflops(DEVICE, fast.dtype, repeats=3))
        spent = []
        for key, work in contenders.items():
            with Stopwatch(fast.network) as network:
                start = time.perf_counter()
                evaluations, cost = work(part)
                seconds = time.perf_counter() - start
            spent.append(evaluations)
            rates[key].append(evaluations / seconds)
            if key == "engine":
                outside.append(1 - network.seconds / seconds)
                if peaks:
                    busy = network.seconds if DEVICE.type == "cpu" else seconds
                    shares.append(cost * flops / busy / 1e12 / peaks[-1])
        assert len(set(spent)) == 1, f"not the same work: {spent}"
    kernels = [p for p in fast.network.parameters() if p.ndim == 4]
    details = {
        "batch_size": batch_size,
        "channels_last": all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels),
        "dtype": str(fast.dtype).removeprefix("torch."),
        "gflops": flops / 1e9,
    }
    details["evaluations_per_second"] = {key: summary(values) for key, values in rates.items()}
    for key, target in zip(list(contenders)[1:], targets, strict=False):
        ratios = [ours / theirs for ours, theirs in zip(rates["engine"], rates[key], strict=True)]
        yield row(f"{name}: speed over the {key}", target, ratios, **details)
    if len(targets) > 2:
        share = f"{name}: share of the matrix product's peak"
        yield row(share, targets[2], shares, dtype=details["dtype"], peak_tflops=summary(peaks))
    yield row(f"{name}: time outside the network", 0.05, outside)


class Stopwatch:
    """Seconds spent in calls of a network. On CUDA, calls return early, so only the launch of the work counts."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.seconds = network, 0.0

    def __enter__(self) -> "Stopwatch":
        def begin(*_: Any) -> None:
            self.start = time.perf_counter()

        def end(*_: Any) -> None:
            self.seconds += time.perf_counter() - self.start

        self.hooks = [self.network.register_forward_pre_hook(begin), self.network.register_forward_hook(end)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def fashion(model: str, repeats: int, images: int, batch_size: int | None = None) -> Iterator[Row]:
    """Compare engine and reference loop with the bundled model, on the bundled sample."""
    fast = load_denoiser(model, device=DEVICE)
    pictures = [load_image(sample.image) for sample in load_sample(repeats * images)]
    jobs = [ImageJob(str(i), preprocess(p.image, fast.image_size), p.key) for i, p in enumerate(pictures)]
    parts = [jobs[i * images : (i + 1) * images] for i in range(repeats)]
    conditioning = fast.condition(range(10))
    name = f"fashion, 10 classes, {repeats} x {images} images"
    yield from compare(name, fast, parts, conditioning, SHORT, [5.0], batch_size)


def whole(model: str, repeats: int, images: int, target: float = 50.0, slow_model: str | None = None) -> Iterator[Row]:
    """Compare `classify` with default settings, from decoded images on, with the loop under the paper's schedule."""
    classifier = DiffusionClassifier.from_pretrained(model, device=DEVICE)
    slow = load_denoiser(slow_model or model, device=DEVICE, dtype=PLAIN_DTYPE)
    conditioning = slow.condition(range(10))
    samples = [sample.image for sample in load_sample()][:: 1000 // (repeats * images)]
    classifier.classify(samples[:1])
    spent: dict[str, list[float]] = {"engine": [], "reference": []}  # seconds per image
    evaluations = []
    for i in range(repeats):
        part = samples[i * images : (i + 1) * images]
        start = time.perf_counter()
        evaluations += [result.num_evaluations for result in classifier.classify(part)]
        spent["engine"].append((time.perf_counter() - start) / images)
        start = time.perf_counter()
        picture = load_image(part[0])
        reference(slow, preprocess(picture.image, slow.image_size), picture.key, conditioning, PUBLISHED, Draws())
        spent["reference"].append(time.perf_counter() - start)
    yield row(
        f"{model}, {repeats} x {images} images: seconds an image of the published schedule over those of classify",
        target,
        [b / a for a, b in zip(*spent.values(), strict=True)],
        strategy=classifier.denoiser.defaults.strategy,
        evaluations=sum(evaluations) / len(evaluations),
        seconds_per_image={name: summary(values) for name, values in spent.items()},
    )


def random_images(denoiser: Denoiser, repeats: int) -> list[list[ImageJob]]:
    """Return one image of noise per repeat."""
    generator, size = torch.Generator().manual_seed(0), denoiser.image_size
    return [[ImageJob("0", torch.rand(3, size, size, generator=generator) * 2 - 1, key)] for key in range(repeats)]


def full_size(
    name: str,
    build: Callable[[int], tuple[Denoiser, Conditioning]],
    repeats: int,
    num_classes: int,
    draws: int,
    target: float,
) -> Iterator[Row]:
    """Compare engine and reference loop with a full-size architecture. Random weights do not affect the cost."""
    denoiser, conditioning = build(num_classes)
    denoiser.to(DEVICE, resolve_dtype("auto", DEVICE))
    jobs = random_images(denoiser, repeats)
    what = f"{name}, 256 pixels, {num_classes} classes x {draws} draws"
    yield from compare(what, denoiser, jobs, conditioning, Fixed(draws), [target, 1.2, 0.65])


def small(repeats: int) -> Iterator[Row]:
    """Compare engine and reference loop with small models of the same families, for a quick check."""
    dtype = resolve_dtype("auto", DEVICE)
    for name, build in (("small Stable Diffusion", small_stable_diffusion), ("small DiT", small_dit)):
        denoiser, conditioning = build(10)
        denoiser.to(DEVICE, dtype)
        yield from compare(
            f"{name}, 10 classes x 1 draw",
            denoiser,
            random_images(denoiser, repeats),
            conditioning,
            Fixed(1),
            [1.0, 1.0],
            QUICK_BATCH_SIZE,
        )


def compiled(model: str) -> Iterator[Row]:
    """Measure the speed-up of torch.compile, and after how many images it pays off."""
    eager = load_denoiser(model, device=DEVICE)
    conditioning = eager.condition(range(10))
    rows = tune(eager, conditioning)
    fast = deepcopy(eager)
    fast.compile()
    start = time.perf_counter()
    seconds_of_call(fast, conditioning, rows, calls=1)
    preparation = time.perf_counter() - start
    times = [[seconds_of_call(d, conditioning, rows, calls=1) for d in (eager, fast)] for _ in range(5)]
    slow, quick = (median(column) / rows for column in zip(*times, strict=True))
    saved = (slow - quick) * (num_evaluations(SHORT, 10) or 0)
    yield row(
        "fashion: torch.compile over none",
        1.0,
        [a / b for a, b in times],
        preparation_seconds=round(preparation, 1),
        strategy=str(SHORT),
        images_to_pay_off=round(preparation / saved) if saved > 0 else None,
    )


def throughput(model: str) -> Iterator[Row]:
    """Measure operations per second against rows per call, for the figure in the docs."""
    fashion_net = load_denoiser(model, device=DEVICE)
    dtype = fashion_net.dtype
    read = bandwidth()
    for name, build, doublings in (
        ("fashion", lambda k: (fashion_net, fashion_net.condition(range(k))), 8),
        ("Stable Diffusion 2", stable_diffusion_2, 4),
        ("DiT-XL/2", dit, 4),
    ):
        denoiser, conditioning = build(10)
        denoiser.to(DEVICE, dtype)
        denoiser.prefix.remove()
        tune(denoiser, conditioning)
        one = torch.zeros(1, dtype=torch.int64)
        flops = count_flops(denoiser, conditioning[one], one)
        rates = {}
        for rows in (2**i for i in range(doublings + 1)):
            seconds = seconds_of_call(denoiser, conditioning, rows, calls=3)
            rates[rows] = round(rows * flops / seconds / 1e9, 1)
        peak = peak_tflops(DEVICE, dtype) * 1e3
        yield row(
            f"{name}: throughput by rows, best over the matrix product's peak",
            None,
            [max(rates.values()) / peak],
            gflops_per_second=rates,
            gflops=flops / 1e9,
            weight_gigabytes=sum(p.numel() * p.element_size() for p in denoiser.network.parameters()) / 1e9,
            peak_gflops_per_second=round(peak, 1),
            gigabytes_per_second=round(read, 1),
        )


def bandwidth() -> float:
    """Return the memory bandwidth of a large sum, in 10⁹ bytes per second."""
    values = torch.ones(2**28, device=DEVICE)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        values.sum().item()
        times.append(time.perf_counter() - start)
    return values.numel() * values.element_size() / min(times) / 1e9


def memory() -> Iterator[Row]:
    """Measure peak memory beyond the weights. Each number comes from a separate process."""

    @cache
    def beyond(family: str, num_classes: int, images: int) -> float:
        script = Path(__file__).with_name("memory.py")
        command = [sys.executable, str(script), family, str(num_classes), str(images)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    for family, name, few_images, num_classes, images in (
        ("dit", "10 to 1,000 classes", 10, 1000, 10),
        ("dit", "10 to 10,000 images", 10, 10, 10_000),
        ("sd", "10 to 1,000 prompts", 20, 1000, 2),  # 20 images × 10 classes fill a batch
    ):
        few, many = beyond(family, 10, few_images), beyond(family, num_classes, images)
        details = {"megabytes": {"from": round(few, 1), "to": round(many, 1)}}
        yield row(f"peak memory beyond the weights, {name}", 1.1, [many / few], **details)


def main() -> None:
    """Run the benchmarks, print the rows, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run a short version, and write no file")
    parser.add_argument(
        "--only",
        choices=["fashion", "whole", "one-draw", "sd2", "dit", "compile", "throughput", "memory"],
        action="append",
        help="part to run; may be repeated (default: all parts)",
    )
    parser.add_argument(
        "--model", default="fashion", help="model of ten classes: a bundled one, or a folder (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repeats per row (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_name("results.json"),
        help="results file (default: benchmarks/results.json)",
    )
    options = parser.parse_args()
    fresh = TemporaryDirectory()  # batch sizes cached earlier, perhaps under load, must not count
    os.environ["XDG_CACHE_HOME"] = fresh.name
    parts = {
        "fashion": fashion(options.model, options.repeats, 40),
        "whole": whole(options.model, options.repeats, 40),
        "one-draw": whole("fashion-fast", options.repeats, 200, 500.0, "fashion"),
        "sd2": full_size("Stable Diffusion 2", stable_diffusion_2, options.repeats, 10, 4, 4.0),
        "dit": full_size("DiT-XL/2", dit, options.repeats, 16, 2, 3.5),
        "compile": compiled(options.model),
        "throughput": throughput(options.model),
        "memory": memory(),
    }
    if options.quick:
        parts = {
            "fashion": fashion(options.model, options.repeats, 1, QUICK_BATCH_SIZE),
            "small": small(options.repeats),
        }
    found = {}
    if options.only:
        parts = {name: parts[name] for name in options.only}
        if options.out.exists():
            found = {line["name"]: line for line in json.loads(options.out.read_text())["rows"]}
    for part in parts.values():
        for line in part:
            print(json.dumps(line), flush=True)
            found[line["name"]] = line
    if not options.quick:
        machine = {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "cpu",
            "capability": torch.backends.cpu.get_cpu_capability(),
            "system": platform.system(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }
        options.out.write_text(json.dumps({"machine": machine, "rows": list(found.values())}, indent=1) + "\n")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
