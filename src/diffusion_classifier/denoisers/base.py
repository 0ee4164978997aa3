"""Abstract denoiser, and what all families share.

Shape legend: K classes, B rows of one network batch, U distinct noisy latents in it, * latent dimensions.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

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
from .model_settings import ModelSettings
from .shared_prefix import Prefix

Average = Literal["error", "embedding"]
"""Quantity averaged over the prompts of one class."""


class KnownModel(NamedTuple):
    """A repository on the hub whose pipeline belongs to a family.

    Args:
        name: hub id.
        licence: licence of the weights, as their authors state it.
        classes: classes that the model can tell apart.
    """

    name: str
    licence: str
    classes: str = "any text"


class Denoiser(ABC):
    """A conditional diffusion network with its schedule, its image encoder and its condition encoder.

    A family implements `encode`, `decode`, `condition` and `forward`, and, to be loaded from folders, `from_pipeline`.
    It also states the class attributes below. Everything else, such as the noise prediction, is the same for all.

    Attributes:
        family: name of the family.
        pipelines: names of the pipeline classes that `from_pipeline` takes.
        known_models: repositories on the hub, for the list of models.
        conditions: names of the tensors of the conditioning.
        crop: how `images.preprocess` crops an image to `image_size`: "center" or "adm".
        any_size: whether the network takes latents of other sizes too, as convolutions do.
        looks_at_values: whether the values of the inputs decide which operations the network runs.
        float32_components: components of the pipeline that are small beside the network, and stay in float32.
        bfloat16_components: components that overflow in float16, and are loaded in bfloat16 instead.
        schedule: t → (α_t, σ_t).
        prediction_type: what `forward` returns; see `prediction`.
        latent_shape: *, shape of one latent.
        image_size: height and width in pixels of the images that `encode` takes.
        prefix: part of the network that runs once for all rows of one noisy latent.
        compiled: whether each new number of rows costs a compilation; see `compile`.
        channels_last: memory layout of the network; see `tuning.set_layout`.
        class_names: classes that the network was trained with. None for text-to-image models.
        defaults: default settings of the model as a classifier.
        licence: licence of the weights. None if the model's folder does not state it.
        times: distribution of the training times; see `time_density`.
        words: the only words that prompts may contain. None if any word is allowed.
    """

    family: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]] = ()
    known_models: ClassVar[tuple[KnownModel, ...]] = ()
    conditions: ClassVar[tuple[str, ...]]
    crop: Crop = "center"
    any_size: ClassVar[bool] = False
    looks_at_values: ClassVar[bool] = False
    float32_components: ClassVar[tuple[str, ...]] = ("vae",)
    bfloat16_components: ClassVar[tuple[str, ...]] = ()
    class_names: Sequence[str] | None = None
    times: str | Weights = "even"

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        schedule: Schedule,
        prediction_type: str,
        latent_shape: tuple[int, ...],
        image_size: int,
        settings: ModelSettings | None = None,
    ) -> None:
        self._modules = dict(modules)
        for module in self._modules.values():
            # A constructed network is in training mode, where DiT drops labels and U-Nets drop features.
            module.eval().requires_grad_(False)
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.latent_shape = latent_shape
        self.image_size = image_size
        settings = settings or ModelSettings()
        self.defaults, self.licence, self.words = settings.defaults, settings.licence, settings.words
        if settings.times is not None:
            self.times = settings.times
        self.prefix = Prefix()
        self.compiled, self.channels_last = False, False

    @classmethod
    def from_pipeline(cls, pipeline: Any, settings: ModelSettings) -> Self:
        """Build the denoiser from a pipeline of one of the classes in `pipelines`.

        Args:
            pipeline: pipeline as diffusers loads it.
            settings: content of the folder's settings file.

        Raises:
            InputError: the network needs other inputs than a noisy latent and its condition, or a value in a config
                or in the settings does not fit.
        """
        raise NotImplementedError(f"{cls.__name__} is not loaded from folders")

    @classmethod
    def component_dtype(cls, name: str, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype in which a component of the pipeline is loaded.

        Args:
            name: name of the component.
            dtype: dtype of the network.
        """
        if name in cls.float32_components:
            return torch.float32
        return torch.bfloat16 if dtype is torch.float16 and name in cls.bfloat16_components else dtype

    @property
    def network(self) -> torch.nn.Module:
        """Module that predicts: the first of the family's modules."""
        return next(iter(self._modules.values()))

    def modules(self) -> list[torch.nn.Module]:
        """Return all networks, including the encoders."""
        return list(self._modules.values())

    def fingerprint(self) -> str:
        """Return a SHA-256 of the names and shapes of all weights and of some values of each, to identify the model."""
        return fingerprint(self.modules())

    @property
    def has_weights(self) -> bool:
        """Whether the network has weights. A closed form has none."""
        return any(True for _ in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the network computes."""
        return next((p.dtype for p in self.network.parameters()), torch.float32)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move all modules to the device, and convert the network, but not its encoders, to the dtype."""
        for module in self._modules.values():
            _to(module, device)
        _to(self.network, dtype)
        return self

    @property
    def predicts_variance(self) -> bool:
        """Whether `forward` returns twice the channels, the second half of which predicts the variance."""
        config = getattr(self.network, "config", None)
        return getattr(config, "out_channels", None) == 2 * self.latent_shape[0]

    def check_loss(self, loss: str) -> None:
        """Raise if this model cannot compute a loss.

        Raises:
            InputError: there is no such loss, or it needs a variance, which the network does not predict.
        """
        check_loss(loss)
        if loss in BOUNDS and not self.predicts_variance:
            raise InputError(f"this model predicts no variance, which the loss {loss} needs: use {', '.join(LOSSES)}")

    def compile(self) -> None:
        """Apply torch.compile to the network. The first batch of each size takes about a minute; later ones run faster.

        Rows no longer share work, because each new number of latents in a batch would cost a compilation.

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
        """Run the network in float32 within the context, for a 16-bit prediction that overflowed."""
        dtype = self.dtype
        try:
            _to(self.network, torch.float32)  # inside, because memory may run out halfway
            yield
        finally:
            _to(self.network, dtype)

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1], float32, as latent means (B, *), float32. Uses no randomness."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, *), float32, to images (B, 1 or 3, H, W) in about [-1, 1]: the inverse of `encode`."""

    @property
    def in_pixels(self) -> bool:
        """Whether latents are the pixels themselves, so that `decode` is exact."""
        return "vae" not in self._modules

    @abstractmethod
    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """Return one row per class (K). Called once for all images.

        Raises:
            InputError: an unknown class, or a prompt that is longer than the encoder reads.
        """

    def null_condition(self) -> Conditioning:
        """Return one row: the unconditional input, with which the network predicts for images of any class.

        Raises:
            InputError: the model was not trained without a condition.
        """
        raise InputError("this model has no null condition: it was not trained to predict without a class")

    def time_density(self, u: Tensor) -> Tensor:
        """Return the density of training times, up to a factor, at the fractions u of the schedule.

        Training times are even, logit-normal (Esser et al. 2024, "Scaling rectified flow transformers", section 3.1),
        or have a density that the model's settings state.
        """
        if not isinstance(self.times, str):
            return weights_at(self.times, u).to(u)
        if self.times == "even":
            return torch.ones_like(u)
        logit = u.clamp(1e-6, 1 - 1e-6).logit()
        return torch.exp(-(logit**2) / 2) / (u * (1 - u)).clamp(min=1e-6)

    @abstractmethod
    def forward(self, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the network's own output for B rows.

        Args:
            noisy: x_t, (B, *), on the network's device and in its dtype.
            t: (B,), on the network's device, with the schedule's dtype.
            conditioning: B rows.
        """

    def condition_by_templates(
        self, class_names: Sequence[str], templates: Sequence[str], average: Average = "error"
    ) -> Conditioning:
        """Fill the name of each class into P templates, and encode the prompts.

        Args:
            class_names: K names.
            templates: P templates, such as "a photo of a {}.".
            average: what is averaged over the prompts of a class: "error", which costs P predictions, or "embedding",
                which costs one, with the mean of their encodings.

        Raises:
            InputError: as `condition`; a template without {}, an unknown average, or no template.
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
        """Yield the network's inputs for K classes, with respect to which `forward` can be differentiated inside.

        Args:
            t: (B,), times of the rows that `forward` will get, on the network's device.
            conditioning: K rows.
        """
        yield of_tensors(len(t), conditioning, t.device)

    def predict_noise(self, noisy: Tensor, t: Tensor, conditioning: Conditioning, latent_index: Tensor) -> Tensor:
        """Return ε̂ (B, *); arguments as for `predict`."""
        return self.predict(noisy, t, conditioning, latent_index)[0]

    @torch.inference_mode()
    def predict(
        self, noisy: Tensor, t: Tensor, conditioning: Conditioning, latent_index: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return ε̂ (B, *) in float32 for B conditioning rows, and the variance if the network predicts it.

        Row b gets the latent noisy[latent_index[b]].

        Args:
            noisy: x_t, (U, *), float32, on the network's device.
            t: (U,), on the CPU, so that reading the schedule does not wait for the device.
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
    """Return a scheduler's config with its class, which the config lacks if it was not loaded from a file."""
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def fingerprint(modules: Iterable[torch.nn.Module]) -> str:
    """Return the fingerprint of modules; see `Denoiser.fingerprint`."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            values = tensor.detach().flatten()
            some = values[:: max(1, len(values) // 64)].float().cpu()
            digest.update(f"{name} {tuple(tensor.shape)} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence warnings of diffusers and transformers that are irrelevant here."""
    before = [(library, library.get_verbosity()) for library in (diffusers_logging, transformers_logging)]
    for library, _ in before:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)


# Unbound, because diffusers' own `to` warns about modules to be kept in float32 even if there are none.
_to = torch.nn.Module.to
