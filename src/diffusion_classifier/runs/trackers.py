"""Log summaries of runs to MLflow or Weights & Biases, with their own clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import InputError
from .spec import RunSpec, read_spec
from .summary import Summary

PROJECT = "diffusion-classifier"


def numbers(summary: Summary) -> dict[str, float]:
    """Return the numbers of a summary, which a tracker can plot."""
    shares = {"accuracy": summary.accuracy, "mean_per_class": summary.mean_per_class, "top5": summary.top5}
    if summary.composition is not None:
        shares |= summary.composition.overall.shares
    found = {
        f"{name}{end}": value
        for name, share in shares.items()
        if share
        for end, value in zip(("", "_low", "_high"), share, strict=True)
    }
    plain = ("num_done", "num_failed", "calibration_error", "undecided", "num_evaluations", "cost", "seconds")
    return found | {name: float(value) for name in plain if (value := getattr(summary, name)) is not None}


def check_tracker(tracker: str) -> Any:
    """Return the client of a tracker.

    Raises:
        InputError: the tracker is unknown or not installed.
    """
    if tracker not in _LOGGERS:
        raise InputError(f"results are logged to {' or '.join(_LOGGERS)}; got {tracker!r}")
    try:
        return import_module(tracker)
    except ImportError as e:
        raise InputError(f"{tracker} is not installed: pip install {tracker}") from e


def log_run(tracker: str, folder: Path, summary: Summary) -> None:
    """Log the spec and the summary of a run as a run of the tracker, in the project "diffusion-classifier".

    Args:
        tracker: "mlflow" or "wandb".
        folder: folder of the run, whose name is the name in the tracker.
        summary: summary of the run.

    Raises:
        InputError: the tracker is unknown, not installed, or fails.
    """
    client = check_tracker(tracker)
    try:
        _LOGGERS[tracker](client, folder.absolute().name, read_spec(folder), summary)
    except Exception as e:
        raise InputError(f"{tracker} fails, and the run is complete in {folder}: {e}") from e


def _mlflow(client: Any, name: str, spec: RunSpec, summary: Summary) -> None:
    client.set_experiment(PROJECT)
    with client.start_run(run_name=name):
        client.log_params({key: json.dumps(value)[:500] for key, value in spec.identity().items()})
        client.log_params({"model": spec.model, "task": spec.task, "device": spec.device})
        client.log_metrics(numbers(summary))


def _wandb(client: Any, name: str, spec: RunSpec, summary: Summary) -> None:
    about = {"model": spec.model, "task": spec.task, "device": spec.device}
    run = client.init(project=PROJECT, name=name, config=spec.identity() | about)
    run.summary.update(numbers(summary))
    run.finish()


_LOGGERS: dict[str, Callable[[Any, str, RunSpec, Summary], None]] = {"mlflow": _mlflow, "wandb": _wandb}
