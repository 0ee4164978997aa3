"""Spec and rows of a run, and a function that writes them to a run folder."""

import numpy as np

from diffusion_classifier.runs.row import ResultRow
from diffusion_classifier.runs.spec import RunSpec
from diffusion_classifier.runs.store import open_run

SPEC = RunSpec(
    data="d", selection="s", num_images=9, class_names=("cat", "dog"), weights_of_model="w", templates=("a {}",),
    average="error", image_size=8, dtype="float32", strategy="fixed:4", lags=None, shortlist=None, timesteps="even",
    loss="l2", extra_losses=("l1",), weights=(0.5, 1.5), seed=0, reduction="sum", temperature=1.0, prior=None,
    store_errors=True, num_dimensions=192, num_timesteps=1000, default_weights=None, task="pets", model="m",
    source="there", metric="accuracy", device="cpu", batch_size=4, compiled=False,
)  # fmt: skip


def row(i, n=4):
    rng = np.random.default_rng(i)
    return ResultRow(
        id=f"image {i}", truth="cat", prediction="dog", posterior=[0.25, 0.75], confidence=0.5, undecided=[],
        num_evaluations=8, cost=8.0, seconds=0.1, errors=rng.random((2, n), np.float32).tolist(),
        timesteps=rng.random(n).tolist(), extra_errors={"l1": rng.random((2, n), np.float32).tolist()},
    )  # fmt: skip


def write(folder, rows, spec=SPEC, part=None):
    with open_run(folder, spec, part) as run:
        for i in rows:
            run.write(row(i))
    return run
