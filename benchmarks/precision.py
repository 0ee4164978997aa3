"""Measure how the dtype of the network changes errors and predictions, and compare the engine with the reference loop.

    python benchmarks/precision.py --images 1000

The script runs a short staged schedule on the bundled sample and prints one JSON line per comparison. In float32, the
engine must return the labels of the reference loop, and its errors to a relative 1e-5.

A paired difference is the error of a class minus the error of the best class at the same draw. For each dtype, the
script prints two numbers: the noise added to paired differences, as a share of their standard deviation over draws, and
the share of images whose label changes.

A dtype without hardware support is slow. --rounded emulates it: it computes in float32, and rounds the weights and the
result of every operation to the dtype.
"""

import argparse
import json
from typing import Any

import torch
from diffusers.models.embeddings import Timesteps as TimeEmbedding
from reference import SHORT, reference
from rich.progress import track
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from diffusion_classifier import load_denoiser
from diffusion_classifier.data import load_image, load_sample, preprocess
from diffusion_classifier.denoisers import DTYPES, Denoiser, resolve_device, tune
from diffusion_classifier.diffusion import Draws, Timesteps
from diffusion_classifier.search import ImageJob, ScoringSettings, mean_errors, score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="fashion", help="class-conditional model (default: %(default)s)")
parser.add_argument("--images", type=int, default=1000, help="number of images (default: %(default)s)")
parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "float16"], help="default: bfloat16 float16")
parser.add_argument("--rounded", action="store_true", help="emulate the dtypes in float32")
options = parser.parse_args()

exact = load_denoiser(options.model, dtype="float32")
strategy = SHORT
draws, loss = Draws(Timesteps.parse(exact.defaults.timesteps)), exact.defaults.loss
conditioning = exact.condition(range(len(exact.class_names or ())))
pictures = [load_image(sample.image) for sample in load_sample(options.images)]
jobs = [ImageJob(str(i), preprocess(p.image, exact.image_size), p.key) for i, p in enumerate(pictures)]


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode that rounds the result of every operation to a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.on = True

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation and round its result. See `TorchDispatchMode`."""
        result = operation(*args, **(kwargs or {}))
        return tree_map(self.round, result) if self.on else result

    def round(self, value: Any) -> Any:
        """Round a float32 tensor to the dtype. Return any other value unchanged."""
        is_float32 = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(self.dtype).float() if is_float32 else value


def rounded(denoiser: Denoiser, dtype: torch.dtype) -> None:
    """Make a float32 network compute as if in this dtype."""
    mode, forward = Rounding(dtype), denoiser.network.forward
    for parameter in denoiser.network.parameters():
        parameter.data = mode.round(parameter.data)
    for module in denoiser.network.modules():
        if isinstance(module, TimeEmbedding):  # always computes in float32

            def embed(*args: Any, inner: Any = module.forward) -> Any:
                mode.on = False
                try:
                    result = inner(*args)
                finally:
                    mode.on = True
                return mode.round(result)

            module.forward = embed

    def whole(noisy: Tensor, *args: Any, **kwargs: Any) -> Any:
        with mode:
            return forward(mode.round(noisy), *args, **kwargs)

    denoiser.network.forward = whole


def tables(dtype: str) -> tuple[list[Tensor], list[int]]:
    """Return the error tables and predicted classes of the engine."""
    emulate = options.rounded and dtype != "float32"
    denoiser = load_denoiser(options.model, dtype="float32" if emulate else dtype)
    batch_size = tune(denoiser, conditioning)
    if emulate:
        rounded(denoiser, DTYPES[dtype])
    results = score(denoiser, jobs, conditioning, ScoringSettings(strategy, draws, loss), batch_size=batch_size)
    found = {int(r.name): r for r in track(results, total=len(jobs), description=f"engine, {dtype}")}
    ordered = [found[i] for i in range(len(jobs))]
    winners = [int(mean_errors(r.errors).where(r.active, torch.inf).argmin()) for r in ordered]
    return [r.errors for r in ordered], winners


plain = [
    reference(exact, job.image, job.key, conditioning, strategy, draws, loss)
    for job in track(jobs, description="reference, float32")
]
errors, labels = tables("float32")
worst = max(float(((e - p) / p).abs().nan_to_num().max()) for e, (p, _) in zip(errors, plain, strict=True))
other = sum(a != b for a, (_, b) in zip(labels, plain, strict=True))
pairs = sum(bool((e.isnan() != p.isnan()).any()) for e, (p, _) in zip(errors, plain, strict=True))
line = {"images": len(jobs), "largest_relative_difference": worst, "other_labels": other, "other_evaluations": pairs}
print(json.dumps({"engine against reference, float32": line, "device": str(resolve_device())}), flush=True)
for dtype in options.dtypes:
    assert dtype in DTYPES
    rough, answers = tables(dtype)
    added, natural = [], []
    for e, r, best in zip(errors, rough, labels, strict=True):
        for c in range(len(e)):
            both = ~(e[c] + r[c] + e[best] + r[best]).isnan()
            if c != best and int(both.sum()) > 1:
                d = (e[c] - e[best])[both]
                natural.append(float(d.var()))
                added.append(float(((r[c] - r[best])[both] - d).square().mean()))
    share = (sum(added) / sum(natural)) ** 0.5
    changed = sum(a != b for a, b in zip(answers, labels, strict=True))
    line = {"rounded": options.rounded, "noise_added": share, "labels_changed": changed / len(jobs)}
    print(json.dumps({dtype: line}), flush=True)
