"""Models that read prompts."""

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
from .shared_prefix import Prefix

_PROMPT_BATCH = 64
"""Prompts that CLIP reads at once."""

_LARGE_PROMPT_BATCH = 8
"""The same for T5, Gemma and Qwen."""

_ON_DEVICE = 2**31
"""Bytes of encoded prompts that are kept where the network is; more are in the computer's memory."""


class TextConditional(Denoiser):
    """A text-to-image pipeline, which encodes prompts by its own `encode_prompt`.

    Its text encoders are on the network's device only while they encode: with the largest of them, a GPU would have
    room for little else.

    Args:
        pipeline: as diffusers loads it.
        image_size: edge of the images in pixels; what the network was trained for if None.
        sample_size: the same for latents; that of the network's config if None.
        before_the_prompt: modules of the network that do not see the prompt; see `Prefix`.

    Raises:
        InputError: the network reads more than a noisy latent and a prompt, or a component is missing.
    """

    optional: ClassVar[tuple[str, ...]] = ()
    """Text encoders and tokenizers that the pipeline can do without."""
    flow: ClassVar[bool] = False
    """Whether the network was trained as a flow and cannot be read by any other schedule."""
    max_tokens: int | None = None
    """Of a prompt for a tokenizer other than CLIP's; what `encode_prompt` reads by default if None."""

    patch_size: ClassVar[int | None] = None
    """Edge of the squares that a transformer cuts a latent into; what its config says if None."""
    packing: ClassVar[int] = 1
    """Edge of the squares of a latent's pixels that the network sees as one token's channels."""

    def __init__(
        self,
        pipeline: Any,
        image_size: int | None = None,
        *,
        sample_size: object = None,
        before_the_prompt: Iterable[torch.nn.Module] = (),
    ) -> None:
        parts = pipeline.components
        network, vae = parts.get("unet", parts.get("transformer")), parts.get("vae")
        self.network_config: Any = network.config
        if image_size is not None:
            scale = autoencoder.scale(vae)
            unit = scale * max(self.packing, self.patch_size or network.config.get("patch_size") or 1)
            if image_size % unit or image_size < unit:
                raise InputError(f"the edge of an image must be a multiple of {unit} for this model; got {image_size}")
            largest = unit * (network.config.get("pos_embed_max_size") or image_size)
            if image_size > largest:
                raise InputError(
                    f"this model knows places in images of {largest} pixels at most along an edge; got {image_size}"
                )
            sample_size = image_size // scale
        elif sample_size is None:
            sample_size = network.config.sample_size
        super().__init__(
            {"network": network} if vae is None else {"network": network, "vae": vae},
            *read_scheduler(scheduler_config(pipeline.scheduler)),
            *autoencoder.sizes(vae, sample_size, network.config.in_channels // self.packing**2),
        )
        if self.flow and self.prediction_type != "flow":
            raise InputError(
                f"{type(pipeline.scheduler).__name__} is not a scheduler of flows, as which this network was trained: "
                "save the pipeline with FlowMatchEulerDiscreteScheduler"
            )
        self.pipeline = pipeline
        self._encoders = [m for name, m in parts.items() if name.startswith("text_encoder") and m is not None]
        for encoder in self._encoders:
            encoder.eval().requires_grad_(False)
        self.prefix = Prefix(before_the_prompt)

    def modules(self) -> list[torch.nn.Module]:
        """See `Denoiser.modules`."""
        return [*super().modules(), *self._encoders]

    @classmethod
    def from_pipeline(cls, pipeline: Any, settings: Mapping[str, Any]) -> Self:
        """From what diffusers loads; the settings may state an image_size."""
        return cls(pipeline, settings.get("image_size"))

    def encode(self, images: Tensor) -> Tensor:
        """Scaled means of the autoencoder; the pixels themselves where there is none. See `Denoiser.encode`."""
        return autoencoder.encode(self._modules.get("vae"), images) / self.schedule.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        """By the autoencoder, where there is one; see `Denoiser.decode`."""
        return autoencoder.decode(self._modules.get("vae"), latents * self.schedule.sigma_data)

    @torch.no_grad()
    def condition(self, classes: Sequence[str] | Sequence[int]) -> Conditioning:
        """Embeddings of prompts, each class being one.

        Raises:
            InputError: a class is no text; a prompt is too long, and none is ever cut short; or it has words that the
                model, trained with few, does not know.
        """
        prompts = [c for c in classes if isinstance(c, str)]
        if len(prompts) < len(classes):
            raise InputError("this model reads text: give it words rather than class indices")
        self._check_encoders()
        if self.words is not None:
            check_known_words(prompts, self.words)
        with without_advice():  # on prompts that are too long, which are refused
            with _misfits_told():
                self._refuse_long(prompts)
            with self.encoders_at_hand(), _misfits_told():
                return self._kept([*self._encoded(prompts)])

    @torch.no_grad()
    def null_condition(self) -> Conditioning:
        """The empty prompt, as sampling with guidance has it; see `Denoiser.null_condition`."""
        self._check_encoders()
        with without_advice(), self.encoders_at_hand(), _misfits_told():
            return self._kept([self.encode_null()])

    def _encoded(self, prompts: list[str]) -> Iterator[dict[str, Tensor]]:
        """In batches, which are halved where memory does not suffice."""
        large = not all(type(encoder).__name__.startswith("CLIP") for encoder in self._encoders)
        size = _LARGE_PROMPT_BATCH if large else _PROMPT_BATCH
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
        """What `forward` needs of each prompt, (K, *) each, on the network's device."""

    def encode_null(self) -> dict[str, Tensor]:
        """What `forward` needs for no prompt, (1, *) each: the empty one, unless the pipeline has another."""
        return self.encode_prompts([""])

    def as_read(self, prompts: list[str]) -> list[str]:
        """The prompts as the tokenizers are given them."""
        preprocess = getattr(self.pipeline, "_text_preprocessing", None)
        return prompts if preprocess is None else preprocess(prompts)

    def token_limits(self) -> Iterator[tuple[Any, int]]:
        """The pipeline's tokenizers, and how many tokens each of them is read up to."""
        parameters = inspect.signature(self.pipeline.encode_prompt).parameters
        for name, tokenizer in self.pipeline.components.items():
            if not name.startswith("tokenizer") or tokenizer is None:
                continue
            if "CLIP" in type(tokenizer).__name__:
                yield tokenizer, tokenizer.model_max_length
            else:
                by_default = parameters.get("max_sequence_length", None)
                yield tokenizer, self.max_tokens or getattr(by_default, "default", tokenizer.model_max_length)

    def _refuse_long(self, prompts: list[str]) -> None:
        for tokenizer, limit in self.token_limits():
            words = self.as_read(prompts)
            if isinstance(self.pipeline, TextualInversionLoaderMixin):
                words = self.pipeline.maybe_convert_prompt(words, tokenizer)
            for prompt, ids in zip(prompts, tokenizer(words).input_ids, strict=True):
                check_prompt_length(prompt, len(ids), limit)

    @contextmanager
    def encoders_at_hand(self) -> Iterator[None]:
        """Within it, text encoders are where the network is; before and after it they are on the processor."""
        try:
            for encoder in self._encoders:
                encoder.to(self.device)
            yield
        finally:
            for encoder in self._encoders:
                encoder.to("cpu")


@contextmanager
def _misfits_told() -> Iterator[None]:
    """Says of what tokenizers and text encoders raise while they read prompts that their files do not fit."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as e:
        raise InputError(
            "the model cannot read prompts, because a tokenizer and its text encoder do not fit each other, or a value "
            f"in their configs is wrong, such as model_max_length or eos_token_id ({type(e).__name__}: {one_line(e)})"
        ) from e
