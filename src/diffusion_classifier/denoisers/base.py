"""What a denoiser is, and what all families share.

Shape legend: K classes, B rows of one network batch, U distinct noisy latents in it, * latent dimensions.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from ..data.images import Crop
from ..data.prompts import fill_template
from ..diffusion.losses import BOUNDS, LOSSES, check_loss
from ..diffusion.prediction import split_variance, to_noise
from ..diffusion.schedules import Schedule
from ..diffusion.timestep_weights import Weights, weights_at
from ..errors import InputError
from .class_inputs import ClassInputs, of_tensors
from .conditioning import Conditioning as Conditioning
from .devices import to_device
from .shared_prefix import Prefix

TIMES = ("even", "logit-normal")
"""How times may lie at which a network was trained, unless by a density of their own."""
Average = Literal["error", "embedding"]
"""Over what the prompts of one class are averaged."""


@dataclass(frozen=True)
class ModelDefaults:
    """What a model's folder says of how it is best read as a classifier (`diffusion_classifier.json`).

    Args:
        strategy: a strategy as the command line spells it.
        loss: "l2", "l1" or "huber".
        timesteps: where the draws lie, as the command line spells it.
        temperature: τ of the posterior, fitted on held-out data for this loss, summed over dimensions; None where none
            was fitted.
        lags: what calibrates a sequential strategy of as many draws as `strategy` has, for this loss and these
            timesteps; None where it was not calibrated.
        classes: those that the lags were found among: among others the promise would not hold.
        weights: over time, for this loss: see `weights.Weights`; the usual ones if None (`default_weights`),
            which are uniform for most networks. Temperature and lags are for them.
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
        """From a JSON file of its own, as `calibrate` writes it.

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
        """From what a JSON file holds.

        Raises:
            InputError: the values are no such settings, or one is of another kind.
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


class Denoiser(ABC):
    """A conditional diffusion network with its schedule, its image encoder and its condition encoder.

    A family implements `encode`, `condition` and `forward`; the noise prediction is the same for all.

    Attributes:
        schedule: t → (α_t, σ_t).
        prediction_type: what `forward` returns; see `prediction`.
        latent_shape: *, of one latent.
        image_size: height and width that `encode` reads, in pixels.
        prefix: what rows of one noisy latent compute but once.
        compiled: whether each number of rows costs a compilation; see `compile`.
        channels_last: memory layout of the network; see `batching.set_layout`.
        crop: how an image is brought to that size, "center" or "adm"; see `images.preprocess`.
        looks_at_values: whether the network reads values of its inputs to know what to compute.
        any_size: whether the network takes latents of other sizes too, as convolutions do.
        class_names: the classes that the network was trained with; None where it reads text.
        conditions: names of the tensors of its conditioning.
        licence: of the weights, where their folder states it.
        times: how those lay at which the network was trained; see `time_density`.
        words: the only ones that prompts may have; any if None.
    """

    family: ClassVar[str]
    crop: Crop = "center"
    any_size: ClassVar[bool] = False
    looks_at_values: ClassVar[bool] = False
    class_names: Sequence[str] | None = None
    conditions: ClassVar[tuple[str, ...]]
    licence: str | None = None
    times: str | Weights = "even"
    words: Sequence[str] | None = None

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        schedule: Schedule,
        prediction_type: str,
        latent_shape: tuple[int, ...],
        image_size: int,
    ) -> None:
        self._modules = dict(modules)
        for module in self._modules.values():
            # A constructed network is in training mode, where DiT drops labels and U-Nets drop features.
            module.eval().requires_grad_(False)
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.latent_shape = latent_shape
        self.image_size = image_size
        self.defaults = ModelDefaults()
        self.prefix = Prefix()
        self.compiled, self.channels_last = False, False

    @property
    def network(self) -> torch.nn.Module:
        """The module that predicts: the first of the family's modules."""
        return next(iter(self._modules.values()))

    def modules(self) -> list[torch.nn.Module]:
        """All networks, those that encode included."""
        return list(self._modules.values())

    def fingerprint(self) -> str:
        """SHA-256 of the names and shapes of all weights and of some of each one's values: tells models apart."""
        return fingerprint(self.modules())

    @property
    def has_weights(self) -> bool:
        """Whether there is a network to speak of; a closed form has none."""
        return any(True for _ in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next((p.dtype for p in self.network.parameters()), torch.float32)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move all modules to the device, and the network, not its encoders, to the dtype."""
        for module in self._modules.values():
            _to(module, device)
        _to(self.network, dtype)
        return self

    @property
    def predicts_variance(self) -> bool:
        """Whether `forward` returns twice the channels, of which the second half tells the variance."""
        config = getattr(self.network, "config", None)
        return getattr(config, "out_channels", None) == 2 * self.latent_shape[0]

    def check_loss(self, loss: str) -> None:
        """Complain of what the errors of this model cannot be.

        Raises:
            InputError: no such loss, or one that needs a variance, which the network does not predict.
        """
        check_loss(loss)
        if loss in BOUNDS and not self.predicts_variance:
            raise InputError(f"this model predicts no variance, which the loss {loss} needs: use {', '.join(LOSSES)}")

    def compile(self) -> None:
        """torch.compile the network: faster from the second batch of a size on, the first takes a minute or so.

        Rows no longer share work, since the number of latents in a batch changes and would have to be compiled for.

        Raises:
            InputError: the network pads prompts to the longest of a batch, and would be compiled for each length.
        """
        if self.looks_at_values and self.has_weights:
            raise InputError(
                f"a {self.family} network is compiled anew for every length of prompts: leave --compile out"
            )
        self.prefix.remove()
        self.network.compile(dynamic=False)
        self.compiled = True

    def fixed_rows(self, fixed: bool = True) -> AbstractContextManager[None]:
        """Return a context in which no bit of a prediction depends on the other rows, in calls of one size.

        The exception are networks that pad prompts to the longest of a batch, by which their kernels are chosen.

        Args:
            fixed: whether this is so; otherwise rows share work as usual.
        """
        return self.prefix.fixed_rows(fixed)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """The network in float32 for a while: the last resort where a 16-bit prediction overflows."""
        dtype = self.dtype
        try:
            _to(self.network, torch.float32)  # within: memory may run out half-way
            yield
        finally:
            _to(self.network, dtype)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1], float32, to latent means (B, *), float32. Uses no randomness."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, *), float32, to images (B, 1 or 3, H, W) in about [-1, 1]: what `encode` undoes."""

    @property
    def in_pixels(self) -> bool:
        """Whether latents are the pixels themselves, so that `decode` is exact."""
        return "vae" not in self._modules

    @abstractmethod
    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """One row per class (K); done once, however many images follow.

        Raises:
            InputError: a class cannot be expressed: an unknown label, a prompt longer than the encoder reads.
        """

    def null_condition(self) -> Conditioning:
        """One row: the condition that stands for none, with which the network predicts for images of any class.

        Raises:
            InputError: the model was not trained with one.
        """
        raise InputError("this model has no null condition: it was not trained to predict without a class")

    def time_density(self, u: Tensor) -> Tensor:
        """Density, up to a factor, of the fractions u of the schedule at which the network was trained.

        Even, logit-normal (Esser et al. 2024, "Scaling rectified flow transformers", section 3.1), or given by numbers.
        """
        if not isinstance(self.times, str):
            return weights_at(self.times, u).to(u)
        if self.times == "even":
            return torch.ones_like(u)
        logit = u.clamp(1e-6, 1 - 1e-6).logit()
        return torch.exp(-(logit**2) / 2) / (u * (1 - u)).clamp(min=1e-6)

    @abstractmethod
    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's own output for B rows.

        Args:
            noisy: x_t, (B, *), on the network's device and in its dtype.
            t: (B,), on the network's device, of the schedule's dtype.
            conditioning: B rows.
        """

    def condition_by_templates(
        self, class_names: Sequence[str], templates: Sequence[str], average: Average = "error"
    ) -> Conditioning:
        """Every class as the prompts that the templates make of its name, P of them.

        Args:
            class_names: K.
            templates: such as "a photo of a {}.".
            average: over what the prompts of a class are averaged: "error", for P predictions in place of one, or
                "embedding", for a single one with the mean of their encodings.

        Raises:
            InputError: as `condition`, and for a template that holds no {}, an unknown average, or no template.
        """
        if average not in get_args(Average):
            raise InputError(f"prompts are averaged by {' or '.join(get_args(Average))}; got {average!r}")
        if not templates:
            raise InputError("at least one template is needed")
        by_template = [fill_template(template, class_names) for template in templates]
        rows = replace(self.condition([*chain(*zip(*by_template, strict=True))]), num_prompts=len(templates))
        return rows.averaged() if average == "embedding" else rows

    @contextmanager
    def class_inputs(self, t: Tensor, conditioning: Conditioning) -> Iterator[ClassInputs]:
        """What the network sees of K classes, for a while within which `forward` can be differentiated.

        Args:
            t: (B,), of the rows that `forward` will be given, on the network's device.
            conditioning: K rows.
        """
        yield of_tensors(len(t), conditioning, t.device)

    def predict_noise(self, noisy: Tensor, t: Tensor, conditioning: Conditioning, latent_index: Tensor) -> Tensor:
        """ε̂ (B, *) of `predict`."""
        return self.predict(noisy, t, conditioning, latent_index)[0]

    @torch.inference_mode()
    def predict(
        self, noisy: Tensor, t: Tensor, conditioning: Conditioning, latent_index: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """ε̂ (B, *) in float32 for B conditioning rows, and the variance if the network predicts it.

        Row b sees noisy[latent_index[b]].

        Args:
            noisy: x_t, (U, *), float32, on the network's device.
            t: (U,), on the CPU, so that the schedule is read without waiting for the device.
            conditioning: B rows.
            latent_index: (B,), int64, on the CPU.
        """
        rows = noisy[to_device(latent_index, noisy.device)]
        t_rows = t[latent_index]
        alpha, sigma = (to_device(a, rows.device) for a in self.schedule(t_rows))
        with self.prefix.shared(latent_index, rows.device):
            output = self.forward(rows.to(self.dtype), to_device(t_rows, rows.device), conditioning.to(rows.device))
        output, variance = split_variance(output, rows.shape[1])
        return to_noise(output, rows, alpha, sigma, self.prediction_type), variance


def scheduler_config(scheduler: Any) -> dict[str, Any]:
    """What `read_scheduler` reads. The config of a scheduler that was not loaded from a file lacks its class."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def fingerprint(modules: Iterable[torch.nn.Module]) -> str:
    """See `Denoiser.fingerprint`."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            values = tensor.detach().flatten()
            some = values[:: max(1, len(values) // 64)].float().cpu()
            digest.update(f"{name} {tuple(tensor.shape)} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def without_advice() -> Iterator[None]:
    """Warnings of diffusers and transformers off for a while, where they speak of what does not matter here."""
    before = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    for library, _ in before:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)


# Unbound, since diffusers' own `to` warns of modules to be kept in float32 even where there are none.
_to = torch.nn.Module.to
