"""Joint training objective: the denoising error, plus λ times the cross-entropy of the classes.

The class probabilities are those of the paper (equation 6, with one draw): the softmax over classes of -s times the
error of the noise, where s is learned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

START = 50.0
"""Initial value of s."""


class NetworkWithScale(torch.nn.Module):
    """A network, and the learned scale s.

    Args:
        network: any network.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.log_scale = torch.nn.Parameter(torch.tensor(math.log(START)))


def draw_rivals(labels: Tensor, num_classes: int, rivals: int, generator: torch.Generator) -> Tensor:
    """Draw `rivals` different negatives (B, M - 1), which are classes other than the labels (B,). 0 stands for all."""
    others = num_classes - 1
    order = torch.rand(len(labels), others, generator=generator).argsort(1)[:, : rivals or others]
    return (labels[:, None] + 1 + order) % num_classes


def cross_entropy(errors: Tensor, scale: Tensor, num_classes: Tensor, absent: Tensor | None = None) -> Tensor:
    """Return -log p of the class in the first column, (B,).

    Args:
        errors: (B, M), errors of the true class and of M - 1 negatives, drawn uniformly from all other classes.
        scale: s.
        num_classes: K, or one number per image (B,). If M is less, each negative stands for several (sampled softmax).
        absent: (B, M), bool, columns to ignore. Default: none.
    """
    absent = torch.zeros_like(errors, dtype=torch.bool) if absent is None else absent
    others = (~absent[:, 1:]).sum(1)
    logits = -scale * errors
    logits = torch.cat([logits[:, :1], logits[:, 1:] + ((num_classes - 1) / others).log()[:, None]], dim=1)
    return -logits.masked_fill(absent, -math.inf).log_softmax(1)[:, 0]
