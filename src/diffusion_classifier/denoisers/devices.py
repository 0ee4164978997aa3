"""Where tensors live, and in what precision a network computes."""

from __future__ import annotations

import platform
from textwrap import shorten

import torch
from torch import Tensor

from ..errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str = "auto") -> torch.device:
    """The device, where "auto" is CUDA if there is one, else the CPU.

    Raises:
        InputError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"device {device!r} cannot be used here: {one_line(e)}") from e
    return resolved


def native_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself, rather than through float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        # The library's own answer is yes where there is AVX-512, which without these two it computes in float32.
        signs = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, sign, lambda: False)() for sign in signs)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The network's dtype, where "auto" is bfloat16 where the device has it, else float16 on CUDA, else float32.

    Raises:
        InputError: not one of "auto", "float32", "bfloat16", "float16".
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if native_bfloat16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, which the CPU does not wait for where the device can fetch it by itself."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def out_of_memory(e: Exception) -> bool:
    """Whether memory ran out. The allocators of the CPU and of Apple's GPUs raise a plain RuntimeError."""
    signs = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(e, MemoryError | torch.OutOfMemoryError) or any(sign in str(e) for sign in signs)


def one_line(e: Exception) -> str:
    """What an exception says, fit for a sentence."""
    return shorten(str(e), 300, placeholder=" …") or type(e).__name__
