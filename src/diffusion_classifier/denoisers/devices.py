"""Devices and dtypes."""

from __future__ import annotations

import platform
from textwrap import shorten

import torch
from torch import Tensor

from ..errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str = "auto") -> torch.device:
    """Return the device. "auto" is CUDA if available, else the CPU.

    Raises:
        InputError: the device does not exist here.
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
    """Return whether the device computes in bfloat16 natively, rather than through float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if platform.machine() in ("x86_64", "AMD64"):
        # The library says yes to any AVX-512, although it computes in float32 without these two extensions.
        signs = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, sign, lambda: False)() for sign in signs)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype. "auto" is bfloat16 if the device has it natively, else float16 on CUDA, else float32.

    Raises:
        InputError: the dtype is not one of "auto", "float32", "bfloat16", "float16".
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
    """Return a copy on the device. The CPU does not wait for a copy to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def out_of_memory(e: Exception) -> bool:
    """Return whether memory ran out. The allocators of the CPU and of Apple's GPUs raise a plain RuntimeError."""
    signs = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(e, MemoryError | torch.OutOfMemoryError) or any(sign in str(e) for sign in signs)


def one_line(e: Exception) -> str:
    """Return the message of an exception in one line, shortened to fit into a sentence."""
    return shorten(str(e), 300, placeholder=" …") or type(e).__name__
