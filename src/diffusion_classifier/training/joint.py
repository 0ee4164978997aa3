"""Trained to denoise and to classify: the denoising error, and λ times the cross-entropy of the classes by their error.

The classifier is that of the paper (its equation 6, with one draw): the softmax over classes of -s times the error of
the noise, where s is learned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

START = 50.0
"""s at the beginning."""


class NetworkWithScale(torch.nn.Module):
    """A network and s.

    Args:
        network: any.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(START)))


def draw_rivals(labels: Tensor, num_classes: int, rivals: int, generator: torch.Generator) -> Tensor:
    """Different classes other than the labels (B,): as many as asked for, or all of them, (B, M - 1)."""
    others = num_classes - 1
    order = torch.rand(len(labels), others, generator=generator).argsort(1)[:, : rivals or others]
    return (labels[:, None] + 1 + order) % num_classes


def cross_entropy(errors: Tensor, scale: Tensor, num_classes: Tensor, absent: Tensor | None = None) -> Tensor:
    """-log p of the class in the first column, (B,).

    Args:
        errors: (B, M) of the true class and M - 1 others, drawn evenly from all.
        scale: s.
        num_classes: K, of all or of each image (B,); where M is less, each of the others stands for several (sampled
            softmax).
        absent: (B, M), bool, columns that do not count; all do if None.
    """
    absent = torch.zeros_like(errors, dtype=torch.bool) if absent is None else absent
    others = (~absent[:, 1:]).sum(1)
    logits = -scale * errors
    logits = torch.cat([logits[:, :1], logits[:, 1:] + ((num_classes - 1) / others).log()[:, None]], dim=1)
    return -logits.masked_fill(absent, -math.inf).log_softmax(1)[:, 0]
