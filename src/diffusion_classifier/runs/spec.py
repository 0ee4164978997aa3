"""What a run is: what decides its results, and what does not.

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

VERSION = 1
SPEC = "spec.json"

WITHOUT_DRAWS: Mapping[str, Any] = {
    "average": "embedding", "lags": None, "shortlist": None, "timesteps": "none",
    "loss": "none", "weights": None, "seed": 0, "reduction": "sum", "temperature": 1.0, "prior": None,
    "store_errors": False, "also": (), "num_dimensions": 0, "num_timesteps": 0, "usual_weights": None,
    "compiled": False,
}  # fmt: skip
"""Fields that say nothing of a run of a model that answers in one pass."""


def _identity(**options: Any) -> Any:
    return field(metadata={"identity": True}, **options)


def _runtime(**options: Any) -> Any:
    return field(metadata={"identity": False}, **options)


@dataclass(frozen=True)
class RunSpec:
    """What a run is. Fields of its identity decide the results; those of runtime do not, but for float tolerance.

    Args:
        version: of the format.
        data: fingerprint of class names, ids, labels and shift.
        selection: fingerprint of which of its images are evaluated.
        num_images: so many are evaluated.
        class_names: K.
        weights_of_model: fingerprint of the weights of all its networks.
        templates: of prompts.
        average: over what several prompts of a class are averaged.
        image_size: edge in pixels that images are brought to.
        dtype: of the network.
        strategy: as the command line spells it.
        lags: fingerprint of what calibrates it.
        shortlist: before it.
        timesteps: where the draws lie.
        loss: of the errors.
        weights: over time.
        seed: of the noise.
        reduction: of errors in the posterior.
        temperature: of the posterior.
        prior: of the classes.
        store_errors: whether rows hold error tables.
        also: other losses, of which they hold them too.
        kind: "classes", of which an image has one; or "captions", of its own, or "pairs" of images with the same two.
        unconditional: whether the null condition was evaluated as well, which is then the last row of error tables.
        shift: by which the images were changed; "" if they were not.
        num_dimensions: of a latent.
        num_timesteps: of the schedule.
        usual_weights: over time, of the model.
        prompt_names: what prompts, or the model, call the classes, K; as they are called if None.
        task: its name.
        model: as it was named.
        source: where the images were.
        metric: by which the task is reported.
        device: of the network.
        batch_size: rows of a network call.
        channels_last: its memory layout; see `batching.Tuning`.
        compiled: whether the network was.
        command: that began it.
        versions: of libraries.
        created: when, in UTC.
        notes: sentences about files that were left out and choices that were made in reading the data.
    """

    data: str = _identity()
    selection: str = _identity()
    num_images: int = _identity()
    class_names: tuple[str, ...] = _identity()
    weights_of_model: str = _identity()
    templates: tuple[str, ...] | None = _identity()
    average: str = _identity()
    image_size: int = _identity()
    dtype: str = _identity()
    strategy: str = _identity()
    lags: str | None = _identity()
    shortlist: str | None = _identity()
    timesteps: str = _identity()
    loss: str = _identity()
    weights: tuple[float, ...] | None = _identity()
    seed: int = _identity()
    reduction: str = _identity()
    temperature: float = _identity()
    prior: tuple[float, ...] | None = _identity()
    store_errors: bool = _identity()
    also: tuple[str, ...] = _identity()
    num_dimensions: int = _identity()
    num_timesteps: int = _identity()
    usual_weights: tuple[float, ...] | None = _identity()
    task: str | None = _runtime()
    model: str = _runtime()
    source: str = _runtime()
    metric: str = _runtime()
    device: str = _runtime()
    batch_size: int = _runtime()
    compiled: bool = _runtime()
    channels_last: bool = _runtime(default=False)
    command: str = _runtime(default="")
    versions: Mapping[str, str] = _runtime(default_factory=dict)
    created: str = _runtime(default="")
    notes: tuple[str, ...] = _runtime(default=())
    prompt_names: tuple[str, ...] | None = _identity(default=None)
    kind: str = _identity(default="classes")
    unconditional: bool = _identity(default=False)
    shift: str = _identity(default="")
    version: int = _identity(default=VERSION)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the results, as JSON has them."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.metadata["identity"]}

    @property
    def sees_all(self) -> bool:
        """Whether every image has the same draws of every class."""
        from ..search.strategies import is_exhaustive  # here, because torch takes seconds to import

        return is_exhaustive(self.strategy) and not self.timesteps.startswith("random") and self.shortlist is None

    def refuse_unlike(self, other: RunSpec, own_folder: Path, other_folder: Path, but: Sequence[str] = ()) -> None:
        """Complain if another run is of other weights, or they were read otherwise, whatever the images.

        Args:
            other: the spec of the other run.
            own_folder: of this run.
            other_folder: of that.
            but: in which settings they may differ, too.

        Raises:
            InputError: it is.
        """
        if other.weights_of_model != self.weights_of_model:
            raise InputError(f"{other_folder} is of another model than {own_folder}")
        own, theirs = self.identity(), other.identity()
        if unlike := sorted(name for name in own if name not in (*_OF_IMAGES, *but) and own[name] != theirs[name]):
            raise InputError(
                f"{other_folder} and {own_folder} differ in {', '.join(unlike)}: runs that are compared are asked alike"
            )


_OF_IMAGES = ("data", "selection", "num_images", "shift", "store_errors", "also")
"""What two runs may differ in that ask the same of a model."""


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def read_spec(folder: Path) -> RunSpec:
    """The spec of a run.

    Raises:
        InputError: the folder holds no run, or one of another version.
    """
    path = folder / SPEC
    if not path.is_file():
        raise InputError(f"{folder} is not the folder of a run: it has no {SPEC}")
    try:
        stored = json.loads(path.read_text("utf-8"))
        version = stored.get("version")
        if version != VERSION:
            raise InputError(f"{folder} holds a run of version {version}; this is for version {VERSION}")
        # Fields that the first runs of this version lack.
        later: dict[str, Any] = {
            "kind": "classes", "unconditional": False, "shift": "", "channels_last": False, "notes": [],
            "prompt_names": None,
        }  # fmt: skip
        values: dict[str, Any] = {f.name: (later | stored)[f.name] for f in fields(RunSpec)}
    except (OSError, ValueError, AttributeError, KeyError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(f"{path} cannot be read as the spec of a run: {e}") from e
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return RunSpec(**values)


def read_begun_spec(folder: Path) -> RunSpec | None:
    """The spec of a run that is gone on with; None if the folder holds none yet.

    Raises:
        InputError: as `read_spec`.
    """
    return read_spec(folder) if (folder / SPEC).is_file() else None


def refuse_another(folder: Path, there: RunSpec, now: RunSpec) -> None:
    """Complain of a run that asks for something else, naming the differences.

    Raises:
        InputError: it does.
    """
    a, b = there.identity(), now.identity()
    different = [name for name in b if a[name] != b[name]]
    if different:
        told = "; ".join(f"{name} {_short(a[name])} there, {_short(b[name])} now" for name in different)
        raise InputError(f"{folder} holds a run of something else ({told}): choose another --out")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:60]}…"


def write_spec(folder: Path, spec: RunSpec) -> None:
    """What `read_spec` reads."""
    write_durably(folder / SPEC, json.dumps(asdict(spec), indent=2, ensure_ascii=False) + "\n")


def refuse_captions(folder: Path, spec: RunSpec, what: str) -> None:
    """Complain of a run whose images have captions of their own.

    Raises:
        InputError: it is one.
    """
    if spec.kind != "classes":
        raise InputError(f"{what} is for runs over classes, and the images of {folder} have captions of their own")


def spec_with_errors(folder: Path) -> RunSpec:
    """The spec of a run that kept its errors.

    Raises:
        InputError: it did not, or as `read_spec`.
    """
    spec = read_spec(folder)
    if not spec.store_errors:
        raise InputError(f"{folder} holds no errors, which `evaluate --store-errors` keeps")
    return spec
