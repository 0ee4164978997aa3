"""Measure the speed of a model on this machine, and predict the time per image."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..classifier import DiffusionClassifier
from ..denoisers import Denoiser
from ..denoisers.flops import count_flops, shared_share
from ..denoisers.tuning import seconds_of_call
from ..errors import InputError
from ..search.strategies import Strategy, parse_strategy

PUBLISHED = ("staged:50,500/5,1", "staged:20,50,100,500/20,10,5,1", "staged:50,100,500,1000/500,50,10,1")
"""The paper's adaptive schedules (Algorithm 2) for CIFAR-10, Food101 and ImageNet."""


@dataclass(frozen=True)
class Bench:
    """Measured speed of a model.

    Args:
        model: name of the model, as given.
        family: family of the model.
        device: device of the network.
        dtype: data type of the network.
        batch_size: rows per network call.
        gflops: operations of one prediction without shared work; a multiply-add counts as two.
        share: share of these operations that rows of the same noisy latent compute only once.
        evaluations_per_second: predictions per second.
        tflops_per_second: achieved throughput.
        peak_tflops_per_second: throughput of a matrix product in the same dtype on the same device.
        peak_memory_gb: peak memory of the process, on CUDA of the device, including the search for the batch size.
        encode_seconds: seconds to encode an image.
        seconds_per_image: number of classes → strategy → seconds for encoding and predictions. Strategies that need
            more classes are left out.
    """

    model: str
    family: str
    device: str
    dtype: str
    batch_size: int
    gflops: float
    share: float
    evaluations_per_second: float
    tflops_per_second: float
    peak_tflops_per_second: float
    peak_memory_gb: float
    encode_seconds: float
    seconds_per_image: dict[int, dict[str, float]]

    @property
    def utilisation(self) -> float:
        """Return the achieved throughput as a share of the peak."""
        return self.tflops_per_second / self.peak_tflops_per_second


def bench(
    classifier: DiffusionClassifier,
    model: str,
    strategies: Sequence[str] = (),
    num_classes: Sequence[int] = (10, 100, 1000),
) -> Bench:
    """Measure the network of a classifier on synthetic images and classes.

    Args:
        classifier: the classifier.
        model: name of the model, for the report.
        strategies: strategies as on the command line. Default: the model's own and `PUBLISHED`.
        num_classes: numbers of classes to predict the seconds per image for.

    Raises:
        InputError: a strategy is unknown, or the model has no network.
    """
    denoiser = classifier.denoiser
    parsed = [parse_strategy(text) for text in strategies or (denoiser.defaults.strategy, *PUBLISHED)]
    names = denoiser.class_names
    classes: Sequence[str] | Sequence[int] = range(min(10, len(names or ())))
    if names is None:  # a small model may have a vocabulary of few words
        classes = sorted(getattr(denoiser, "words", None) or [f"a photo of thing {i}" for i in range(10)])[:10]
    conditioning = denoiser.condition(classes)
    if not denoiser.has_weights:
        raise InputError(f"{model} has no network to measure")
    alone = torch.zeros(1, dtype=torch.int64)
    flops = count_flops(denoiser, conditioning[alone], alone)
    batch_size = classifier.scorer.prepare(conditioning)
    share = shared_share(denoiser, conditioning)
    seconds = seconds_of_call(denoiser, conditioning, batch_size)
    encode_seconds = median(seconds_of_encoding(denoiser) for _ in range(3))
    num_latents = -(-batch_size // len(conditioning))
    predictions = batch_size - share * (batch_size - num_latents)
    if denoiser.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(denoiser.device)
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Bench(
        model=model,
        family=denoiser.family,
        device=str(denoiser.device),
        dtype=str(denoiser.dtype).removeprefix("torch."),
        batch_size=batch_size,
        gflops=flops / 1e9,
        share=share,
        evaluations_per_second=batch_size / seconds,
        tflops_per_second=predictions * flops / seconds / 1e12,
        peak_tflops_per_second=peak_tflops(denoiser.device, denoiser.dtype),
        peak_memory_gb=memory / 1e9,
        encode_seconds=encode_seconds,
        seconds_per_image={
            k: {
                f"{s}{'' if s.num_evaluations(k)[0] == most else ', at most'}": encode_seconds
                + most * seconds / batch_size
                for s in parsed
                if (most := num_evaluations(s, k)) is not None
            }
            for k in num_classes
        },
    )


def seconds_of_encoding(denoiser: Denoiser) -> float:
    """Measure the seconds to encode one image, without decoding its file."""
    image = torch.zeros(1, 3, denoiser.image_size, denoiser.image_size, device=denoiser.device)
    start = time.perf_counter()
    denoiser.encode(image).cpu()  # waits for the device
    return time.perf_counter() - start


def num_evaluations(strategy: Strategy, num_classes: int) -> int | None:
    """Return the maximum number of evaluations per image if no classes tie; None if the strategy needs more classes."""
    try:
        strategy.init(num_classes)
    except InputError:
        return None
    return strategy.num_evaluations(num_classes)[1]


@torch.inference_mode()
def peak_tflops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the 10¹² operations per second of the fastest of several 4096 × 4096 matrix products (8192 on CUDA)."""
    n = 8192 if device.type == "cuda" else 4096
    a = torch.ones(n, n, dtype=dtype, device=device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times[1:]) / 1e12
