"""Text-to-image models."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor

from ..data.prompts import check_known_words, check_prompt_length
from ..diffusion.schedules import read_scheduler
from ..errors import InputError
from . import autoencoder
from .base import Conditioning, Denoiser, scheduler_config, without_advice
from .devices import one_line, out_of_memory
from .model_settings import ModelSettings
from .shared_prefix import Prefix

_PROMPT_BATCH = 64
"""Number of prompts per batch for CLIP."""

_LARGE_PROMPT_BATCH = 8
"""Number of prompts per batch for larger text encoders: T5, Gemma and Qwen."""

_ON_DEVICE = 2**31
"""Largest size in bytes of encoded prompts that are kept on the network's device. Larger ones are kept on the CPU."""


class TextConditional(Denoiser):
    """A text-to-image pipeline, which encodes prompts with its own `encode_prompt`.

    Its text encoders are on the network's device only while they encode, because next to the largest of them a GPU has
    little memory left.

    A family implements `encode_prompts` and `forward`, and overrides the class attributes and methods below if its
    pipeline differs from the default.

    Args:
        pipeline: pipeline as diffusers loads it.
        settings: content of the folder's settings file, which may state another image size than that of training.
        sample_size: edge of a latent. Default: the one in the network's config.
        before_the_prompt: modules of the network that do not depend on the prompt; see `Prefix`.

    Raises:
        InputError: the network takes more than a noisy latent and a prompt, or a component is missing.
    """

    optional: ClassVar[tuple[str, ...]] = ()
    """Text encoders and tokenizers that the pipeline can do without."""
    flow: ClassVar[bool] = False
    """Whether the network was trained as a flow, and no other schedule can be used."""
    max_tokens: int | None = None
    """Maximum number of tokens per prompt, for tokenizers other than CLIP's. Default: that of `encode_prompt`."""
    patch_size: ClassVar[int | None] = None
    """Edge of the patches into which a transformer cuts a latent. Default: the one in its config."""
    packing: ClassVar[int] = 1
    """Edge of the squares of latent pixels that are packed into the channels of one token."""
    autoencoder_widths: ClassVar[str] = autoencoder.WIDTHS
    """Entry of the autoencoder's config that lists the widths of its levels; see `autoencoder.scale`."""

    def __init__(
        self,
        pipeline: Any,
        settings: ModelSettings | None = None,
        *,
        sample_size: object = None,
        before_the_prompt: Iterable[torch.nn.Module] = (),
    ) -> None:
        parts = pipeline.components
        network, vae = parts.get("unet", parts.get("transformer")), parts.get("vae")
        self.network_config: Any = network.config
        if settings is not None and settings.image_size is not None:
            sample_size = self._sample_size(vae, settings.image_size)
        elif sample_size is None:
            sample_size = network.config.sample_size
        channels = network.config.in_channels // self.packing**2
        super().__init__(
            {"network": network} if vae is None else {"network": network, "vae": vae},
            *read_scheduler(scheduler_config(pipeline.scheduler)),
            *autoencoder.sizes(vae, sample_size, channels, self.autoencoder_widths),
            settings,
        )
        if self.flow and self.prediction_type != "flow":
            raise InputError(
                f"{type(pipeline.scheduler).__name__} is not a scheduler of flows, as which this network was trained: "
                "save the pipeline with FlowMatchEulerDiscreteScheduler"
            )
        self.pipeline = pipeline
        encoders = {name: m for name, m in parts.items() if name.startswith("text_encoder") and m is not None}
        self._encoders = list(encoders.values())
        self._has_large_encoder = any(name not in self.float32_components for name in encoders)
        for encoder in self._encoders:
            encoder.eval().requires_grad_(False)
        self.prefix = Prefix(before_the_prompt)

    def _sample_size(self, vae: Any, image_size: int) -> int:
        """Return the edge of the latents of images of a given size.

        Raises:
            InputError: the network cannot take images of this size.
        """
        scale = autoencoder.scale(vae, self.autoencoder_widths)
        unit = scale * max(self.packing, self.patch_size or self.network_config.get("patch_size") or 1)
        if image_size % unit or image_size < unit:
            raise InputError(f"the edge of an image must be a multiple of {unit} for this model; got {image_size}")
        patches = self.max_patches()
        if patches is not None and image_size > unit * patches:
            raise InputError(
                f"this model knows places in images of {unit * patches} pixels at most along an edge; got {image_size}"
            )
        return image_size // scale

    def max_patches(self) -> int | None:
        """Return the number of patches along an edge for which the network has positions. None if it has no limit."""
        return None

    def modules(self) -> list[torch.nn.Module]:
        """See `Denoiser.modules`."""
        return [*super().modules(), *self._encoders]

    @classmethod
    def from_pipeline(cls, pipeline: Any, settings: ModelSettings) -> Self:
        """See `Denoiser.from_pipeline`; the settings may state an image size."""
        return cls(pipeline, settings)

    def sampling_options(self) -> dict[str, Any]:
        """Return further arguments with which the pipeline's `__call__` encodes prompts as `condition` does."""
        return {}

    def encode(self, images: Tensor) -> Tensor:
        """Return scaled means of the autoencoder, or the pixels if there is none. See `Denoiser.encode`."""
        return autoencoder.encode(self._modules.get("vae"), images) / self.schedule.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        """Decode by the autoencoder, if there is one. See `Denoiser.decode`."""
        return autoencoder.decode(self._modules.get("vae"), latents * self.schedule.sigma_data)

    @torch.no_grad()
    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """Return encodings of prompts, one prompt per class.

        Raises:
            InputError: a class is not a string; a prompt is too long, because prompts are never truncated; or it has
                words outside the closed vocabulary of the model.
        """
        prompts = [c for c in classes if isinstance(c, str)]
        if len(prompts) < len(classes):
            raise InputError("this model reads text: give it words rather than class indices")
        self._check_encoders()
        if self.words is not None:
            check_known_words(prompts, self.words)
        with without_advice():  # about long prompts, for which an InputError is raised
            with _explained():
                self._check_lengths(prompts)
            with self.encoders_at_hand(), _explained():
                return self._kept([*self._encoded(prompts)])

    @torch.no_grad()
    def null_condition(self) -> Conditioning:
        """Return the empty prompt, as sampling with guidance uses it. See `Denoiser.null_condition`."""
        self._check_encoders()
        with without_advice(), self.encoders_at_hand(), _explained():
            return self._kept([self.encode_null()])

    def _encoded(self, prompts: list[str]) -> Iterator[dict[str, Tensor]]:
        """Encode prompts in batches, which are halved if memory runs out."""
        size = _LARGE_PROMPT_BATCH if self._has_large_encoder else _PROMPT_BATCH
        done = 0
        while done < len(prompts):
            try:
                encoded = self.encode_prompts(prompts[done : done + size])
            except (MemoryError, RuntimeError) as e:
                if size == 1 or not out_of_memory(e):
                    raise
                size //= 2
                continue
            for tensor in encoded.values():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise InputError(
                        f"encodings of prompts are not finite in {str(tensor.dtype).removeprefix('torch.')}: load the "
                        "model with --dtype bfloat16 or float32"
                    )
            yield {name: tensor.cpu() for name, tensor in encoded.items()}
            done += size

    def _kept(self, parts: list[dict[str, Tensor]]) -> Conditioning:
        conditioning = Conditioning({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        small = sum(tensor.nbytes for tensor in conditioning.tensors.values()) <= _ON_DEVICE
        return conditioning.to(self.device) if small else conditioning

    def _check_encoders(self) -> None:
        for name, part in self.pipeline.components.items():
            if part is None and name.startswith(("text_encoder", "tokenizer")) and name not in self.optional:
                raise InputError(f"this pipeline has no {name}, so that it cannot read class names")

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return the tensors (K, *) that `forward` takes, one row per prompt, on the network's device."""

    def encode_null(self) -> dict[str, Tensor]:
        """Return the tensors (1, *) of the null condition: the empty prompt, unless the pipeline has another."""
        return self.encode_prompts([""])

    def as_read(self, prompts: list[str]) -> list[str]:
        """Return the prompts as the tokenizers get them."""
        preprocess = getattr(self.pipeline, "_text_preprocessing", None)
        return prompts if preprocess is None else preprocess(prompts)

    def token_limits(self) -> Iterator[tuple[Any, int]]:
        """Yield each tokenizer of the pipeline, and the number of its tokens that are read."""
        parameters = inspect.signature(self.pipeline.encode_prompt).parameters
        for name, tokenizer in self.pipeline.components.items():
            if not name.startswith("tokenizer") or tokenizer is None:
                continue
            if "CLIP" in type(tokenizer).__name__:
                yield tokenizer, tokenizer.model_max_length
            else:
                by_default = parameters.get("max_sequence_length", None)
                yield tokenizer, self.max_tokens or getattr(by_default, "default", tokenizer.model_max_length)

    def _check_lengths(self, prompts: list[str]) -> None:
        for tokenizer, limit in self.token_limits():
            words = self.as_read(prompts)
            if isinstance(self.pipeline, TextualInversionLoaderMixin):
                words = self.pipeline.maybe_convert_prompt(words, tokenizer)
            for prompt, ids in zip(prompts, tokenizer(words).input_ids, strict=True):
                check_prompt_length(prompt, len(ids), limit)

    @contextmanager
    def encoders_at_hand(self) -> Iterator[None]:
        """Move the text encoders to the network's device within the context, and back to the CPU afterwards."""
        try:
            for encoder in self._encoders:
                encoder.to(self.device)
            yield
        finally:
            for encoder in self._encoders:
                encoder.to("cpu")


class MaskedText(TextConditional):
    """A text-to-image pipeline whose prompts have one encoding, with a mask of their tokens."""

    conditions = ("prompt_embeds", "mask")
    prompt_options: Mapping[str, Any] = {}
    """Further arguments of the pipeline's `encode_prompt`, for prompts but not for the null condition."""

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """See `TextConditional.encode_prompts`."""
        embeds, mask, _, _ = self.pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, device=self.device, **self.prompt_options
        )
        return {"prompt_embeds": embeds, "mask": mask}

    def encode_null(self) -> dict[str, Tensor]:
        """Return the negative prompt of guidance, without an instruction. See `TextConditional.encode_null`."""
        _, _, embeds, mask = self.pipeline.encode_prompt([""], device=self.device)
        return {"prompt_embeds": embeds, "mask": mask}


@contextmanager
def _explained() -> Iterator[None]:
    """Turn errors of tokenizers and text encoders whose files do not fit each other into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as e:
        raise InputError(
            "the model cannot read prompts, because a tokenizer and its text encoder do not fit each other, or a value "
            f"in their configs is wrong, such as model_max_length or eos_token_id ({type(e).__name__}: {one_line(e)})"
        ) from e


def check_unset(unet: Any, names: Iterable[str]) -> None:
    """Raise if a U-Net's config sets one of these names, because the network then takes more than a prompt.

    Raises:
        InputError: one of them is set.
    """
    for name in names:
        if unet.config.get(name) is not None:
            raise InputError(
                f"the UNet has {name} {unet.config[name]!r}: it needs more than a prompt, which is not supported"
            )
