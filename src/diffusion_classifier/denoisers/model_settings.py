"""Settings in a model's folder for which diffusers has no place: class names, defaults, licence, training times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..diffusion.timestep_weights import Weights, read_weights
from ..errors import InputError

SETTINGS_FILE = "diffusion_classifier.json"
"""Name of the file, which lies beside model_index.json."""

TIMES = ("even", "logit-normal")
"""Named distributions of training times. A model may state its own density instead."""


@dataclass(frozen=True)
class ModelDefaults:
    """Default settings of a model as a classifier, from its settings file or from a calibration.

    Args:
        strategy: a strategy as the command line spells it.
        loss: "l2", "l1" or "huber".
        timesteps: distribution of the draws' times, as the command line spells it.
        temperature: τ of the posterior, fitted on held-out data for this loss, summed over dimensions. None if no
            temperature was fitted.
        lags: calibration of a sequential strategy with as many draws as `strategy`, for this loss and these timesteps.
            None if the strategy was not calibrated.
        classes: candidate classes of the calibration. The error rate of `lags` holds for these classes only.
        weights: timestep weights for this loss, for which temperature and lags were fitted. None stands for
            `default_weights`, which are uniform for most networks.
    """

    strategy: str = "sequential:64/0.01"
    loss: str = "l2"
    timesteps: str = "even"
    temperature: float | None = None
    lags: Sequence[float] | None = None
    classes: Sequence[str] | None = None
    weights: Sequence[float] | None = None

    @classmethod
    def load(cls, file: Path) -> ModelDefaults:
        """Read a JSON file that `calibrate` wrote.

        Raises:
            InputError: the file cannot be read, or does not hold such settings.
        """
        try:
            values = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as e:
            raise InputError(f"{file} cannot be used as a calibration: {e}") from e
        return cls.read(values, file)

    @classmethod
    def read(cls, values: Any, file: Path) -> ModelDefaults:
        """Check the content of a JSON file, and return it as defaults.

        Raises:
            InputError: a setting is unknown, or its value has another type.
        """
        try:
            found = cls(**values)
        except TypeError as e:
            raise InputError(f"{file} cannot be used as a calibration: {e}") from e
        for f in fields(cls):
            value, several = getattr(found, f.name), f.name in ("lags", "classes", "weights")
            kind = (int, float) if f.name in ("temperature", "lags", "weights") else (str,)
            each = value if several else [value]
            if value is None and f.default is None:
                continue
            if not isinstance(each, list) or not all(type(x) in kind for x in each):
                raise InputError(f"{file}: {f.name} cannot be {value!r}")
        return found


@dataclass(frozen=True)
class ModelSettings:
    """Content of a model's settings file. Families check class names, `patch_size` and `image_size` themselves.

    Args:
        class_names: one name per class. None if the folder names none.
        id2label: class names by index, as DiT's model_index.json holds them. None if there are none.
        patch_size: edge of the squares of pixels that are folded into channels.
        image_size: edge in pixels of the images. None stands for the size that the network was trained for.
        defaults: see `ModelDefaults`.
        licence: licence of the weights. None if it is not stated.
        times: distribution of the training times: one of `TIMES`, or a density. None stands for the family's own.
        words: the only words that prompts may contain. None if any word is allowed.
    """

    class_names: Any = None
    id2label: Any = None
    patch_size: Any = 1
    image_size: int | None = None
    defaults: ModelDefaults = ModelDefaults()
    licence: str | None = None
    times: str | Weights | None = None
    words: Sequence[str] | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any], file: Path) -> ModelSettings:
        """Check the content of a settings file. Unknown settings are ignored.

        Raises:
            InputError: defaults, times or words have another type.
        """
        times, words = values.get("times"), values.get("words")
        if isinstance(times, str) and times not in TIMES:
            raise InputError(f"{file}: times {times!r} are not one of {', '.join(TIMES)}")
        if words is not None and not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
            raise InputError(f"{file}: words cannot be {words!r}")
        checked = {
            "defaults": ModelDefaults.read(values.get("defaults", {}), file),
            "times": times if times is None or isinstance(times, str) else read_weights(times),
        }
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values} | checked)
