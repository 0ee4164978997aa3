"""Specification of a run: the settings that decide its results, and the facts that do not.

Shape legend: K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_durably

VERSION = 2
SPEC = "spec.json"

DIFFUSION = "diffusion"
"""`RunSpec.model_kind` of diffusion models; baselines have their own."""

WITHOUT_DRAWS: Mapping[str, Any] = {
    "strategy": "one-pass", "average": "embedding", "lags": None, "shortlist": None, "timesteps": "none",
    "loss": "none", "weights": None, "seed": 0, "reduction": "sum", "temperature": 1.0, "prior": None,
    "store_errors": False, "extra_losses": (), "num_dimensions": 0, "num_timesteps": 0, "default_weights": None,
    "compiled": False,
}  # fmt: skip
"""Placeholder values for one-pass models, which have no draws."""


def _identity(**options: Any) -> Any:
    """Declare a field that decides the results: a run can only be resumed with the same value."""
    return field(metadata={"identity": True}, **options)


def _runtime(**options: Any) -> Any:
    """Declare a field that does not change the results beyond float tolerance."""
    return field(metadata={"identity": False}, **options)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Specification of a run: first the fields that decide the results, then those of the runtime."""

    version: int = _identity(default=VERSION)
    """Version of the format."""

    data: str = _identity()
    """Fingerprint of class names, image ids, true labels and corruption."""
    selection: str = _identity()
    """Fingerprint of the ids of the images to evaluate."""
    num_images: int = _identity()
    """Number of images to evaluate."""
    shift: str = _identity(default="")
    """Corruption of the images, such as "gaussian-noise:3"; "" for none."""
    kind: str = _identity(default="classes")
    """"classes" if all images have the same candidates; "captions" if each has its own; "pairs" if images come in pairs
    that share two captions."""
    class_names: tuple[str, ...] = _identity()
    """K class names; empty for captions."""
    prompt_names: tuple[str, ...] | None = _identity(default=None)
    """Name of each class in prompts, or in the model; None if these are the class names."""
    templates: tuple[str, ...] | None = _identity()
    """Prompt templates; None if the name itself is the prompt."""
    average: str = _identity()
    """Quantity averaged over several templates: "error" or "embedding"."""
    unconditional: bool = _identity(default=False)
    """Whether the null condition is evaluated too, as the last row of error tables."""

    model_kind: str = _identity(default=DIFFUSION)
    """"diffusion", or the kind of a one-pass baseline: "contrastive", "supervised" or "features"."""
    weights_of_model: str = _identity()
    """Fingerprint of the weights of all its networks."""
    image_size: int = _identity()
    """Resolution in pixels that images are resized to."""
    dtype: str = _identity()
    """Data type of the network."""
    num_dimensions: int = _identity()
    """Number of dimensions of a latent."""
    num_timesteps: int = _identity()
    """Number of timesteps of the schedule."""
    default_weights: tuple[float, ...] | None = _identity()
    """Default timestep weights of the model; None for uniform weights."""

    strategy: str = _identity()
    """Search strategy, as on the command line; "one-pass" for baselines."""
    lags: str | None = _identity()
    """Fingerprint of the calibration of the strategy; None without one."""
    shortlist: str | None = _identity()
    """Shortlist before the search, with its settings; None without one."""
    timesteps: str = _identity()
    """Timesteps of the draws, as on the command line."""
    seed: int = _identity()
    """Seed of the noise."""
    loss: str = _identity()
    """Loss of the errors."""
    extra_losses: tuple[str, ...] = _identity()
    """Other losses whose error tables are stored too."""
    weights: tuple[float, ...] | None = _identity()
    """Timestep weights of the posterior; None for uniform weights."""
    reduction: str = _identity()
    """Reduction of errors over dimensions in the posterior: "sum" or "mean"."""
    temperature: float = _identity()
    """Temperature of the posterior."""
    prior: tuple[float, ...] | None = _identity()
    """Prior probability of each class; None for a uniform prior."""
    store_errors: bool = _identity()
    """Whether rows hold error tables."""

    task: str | None = _runtime()
    """Name of the task; None for data of your own."""
    model: str = _runtime()
    """Name or path of the model, as given."""
    source: str = _runtime()
    """Where the images were read from."""
    metric: str = _runtime()
    """Metric that the task is reported by."""
    device: str = _runtime()
    """Device of the network."""
    batch_size: int = _runtime()
    """Rows per network call."""
    channels_last: bool = _runtime(default=False)
    """Memory layout of the network; see `tuning.Tuning`."""
    compiled: bool = _runtime()
    """Whether the network was compiled."""
    command: str = _runtime(default="")
    """Command that started the run."""
    versions: Mapping[str, str] = _runtime(default_factory=dict)
    """Versions of the libraries."""
    created: str = _runtime(default="")
    """Start of the run, in UTC."""
    notes: tuple[str, ...] = _runtime(default=())
    """Sentences about files that were left out and choices that were made in reading the data."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the results, as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.metadata["identity"]}

    @property
    def sees_all(self) -> bool:
        """Return whether every image has the same draws for every class."""
        from ..search.strategies import is_exhaustive  # here, because torch takes seconds to import

        return is_exhaustive(self.strategy) and not self.timesteps.startswith("random") and self.shortlist is None

    def check_comparable(self, other: RunSpec, own_folder: Path, other_folder: Path, but: Sequence[str] = ()) -> None:
        """Raise if `other` used another model or other settings. The images may differ.

        Args:
            other: the spec of the other run.
            own_folder: folder of this run, for messages.
            other_folder: folder of the other run.
            but: more fields that may differ.

        Raises:
            InputError: the model or a setting differs.
        """
        if other.weights_of_model != self.weights_of_model:
            raise InputError(f"{other_folder} is of another model than {own_folder}")
        own, theirs = self.identity(), other.identity()
        if unlike := sorted(name for name in own if name not in (*_OF_IMAGES, *but) and own[name] != theirs[name]):
            raise InputError(
                f"{other_folder} and {own_folder} differ in {', '.join(unlike)}: only runs with the same settings can "
                "be compared"
            )


_OF_IMAGES = ("data", "selection", "num_images", "shift", "store_errors", "extra_losses")
"""Fields that may differ between comparable runs."""


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read_spec(folder: Path) -> RunSpec:
    """Read the spec of a run. A spec of version 1 is converted.

    Raises:
        InputError: the folder holds no run, or one of an unknown version.
    """
    path = folder / SPEC
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {SPEC}")
    try:
        stored = json.loads(path.read_text("utf-8"))
        version = stored.get("version")
        if version not in (1, VERSION):
            raise InputError(f"{folder} holds a run of version {version}; this is for version {VERSION}")
        stored = _from_version_1(stored) if version == 1 else stored
        values: dict[str, Any] = {f.name: stored[f.name] for f in fields(RunSpec)}
    except (OSError, ValueError, AttributeError, KeyError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{path} cannot be read as the spec of a run: {e}") from e
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return RunSpec(**values)


def _from_version_1(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stored values under today's names."""
    # The first runs of version 1 lack these fields.
    later = {
        "kind": "classes", "unconditional": False, "shift": "", "channels_last": False, "notes": [],
        "prompt_names": None,
    }  # fmt: skip
    now = {**later, **stored, "version": VERSION, "model_kind": DIFFUSION}
    now["extra_losses"], now["default_weights"] = now.pop("also"), now.pop("usual_weights")
    if now["loss"] == WITHOUT_DRAWS["loss"]:  # version 1 has the kind of a baseline in place of its strategy
        now["model_kind"], now["strategy"] = now["strategy"], WITHOUT_DRAWS["strategy"]
    return now


def read_spec_if_any(folder: Path) -> RunSpec | None:
    """Read the spec of a run to resume; None if the folder holds none yet.

    Raises:
        InputError: as `read_spec`.
    """
    return read_spec(folder) if (folder / SPEC).is_file() else None


def check_same_run(folder: Path, there: RunSpec, now: RunSpec) -> None:
    """Raise if the stored spec and the requested one decide different results; the message names the differences.

    Raises:
        InputError: they do.
    """
    a, b = there.identity(), now.identity()
    different = [name for name in b if a[name] != b[name]]
    if different:
        differences = "; ".join(f"{name} {_short(a[name])} there, {_short(b[name])} now" for name in different)
        raise InputError(f"{folder} holds a run of something else ({differences}): choose another --out")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}…"


def write_spec(folder: Path, spec: RunSpec) -> None:
    """Write a spec for `read_spec`."""
    write_durably(folder / SPEC, json.dumps(asdict(spec), indent=2, ensure_ascii=False) + "\n")


def convert_spec(folder: Path, spec: RunSpec) -> None:
    """Replace a stored spec of version 1 by `spec`, which `read_spec` made of it."""
    if json.loads((folder / SPEC).read_text("utf-8"))["version"] != VERSION:
        write_spec(folder, spec)


def check_class_run(folder: Path, spec: RunSpec, what: str) -> None:
    """Raise if the images of a run have captions of their own.

    Raises:
        InputError: they have.
    """
    if spec.kind != "classes":
        raise InputError(f"{what} is for runs over classes, and the images of {folder} have captions of their own")


def spec_with_errors(folder: Path) -> RunSpec:
    """Read the spec of a run that stored its errors.

    Raises:
        InputError: the run stored none; as `read_spec`.
    """
    spec = read_spec(folder)
    if not spec.store_errors:
        raise InputError(f"{folder} holds no errors, which `evaluate --store-errors` keeps")
    return spec
