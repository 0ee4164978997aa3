"""Summaries of runs to MLflow or Weights & Biases, through their own clients."""

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
    """What can be plotted of a summary."""
    shares = {"accuracy": summary.accuracy, "mean_per_class": summary.mean_per_class, "top5": summary.top5}
    if summary.composition is not None:
        shares |= summary.composition.overall.shares
    found = {
        f"{name}{end}": share[i]
        for name, share in shares.items()
        if share
        for i, end in enumerate(("", "_low", "_high"))
    }
    plain = ("num_done", "num_failed", "calibration_error", "undecided", "num_evaluations", "cost", "seconds")
    return found | {name: float(value) for name in plain if (value := getattr(summary, name)) is not None}


def check_tracker(tracker: str) -> Any:
    """The client of a tracker.

    Raises:
        InputError: no such tracker, or it is not installed.
    """
    if tracker not in _LOGGERS:
        raise InputError(f"results are logged to {' or '.join(_LOGGERS)}; got {tracker!r}")
    try:
        return import_module(tracker)
    except ImportError as e:
        raise InputError(f"{tracker} is not installed: pip install {tracker}") from e


def log_run(tracker: str, folder: Path, summary: Summary) -> None:
    """Log the spec and the summary of a run as one run of the tracker, of the project "diffusion-classifier".

    Args:
        tracker: "mlflow" or "wandb".
        folder: of the run; its name is the run's.
        summary: of the run.

    Raises:
        InputError: no such tracker, it is not installed, or it fails.
    """
    client = check_tracker(tracker)
    try:
        _LOGGERS[tracker](client, folder.absolute().name, read_spec(folder), summary)
    except Exception as e:
        raise InputError(f"{tracker} fails, and the run is whole in {folder}: {e}") from e


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
