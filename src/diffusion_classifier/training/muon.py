"""Muon: orthogonalised momentum for the matrices and kernels of a network (Jordan et al., 2024, "Muon").

A step changes all directions of a matrix equally, while AdamW follows the few that dominate the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Quintic Newton–Schulz iteration of the same source: singular values become about 0.7 to 1.2, not exactly 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return U S′ Vᵀ for a matrix U S Vᵀ, with all of S′ near 1, in float32.

    The iteration is a polynomial in the Gram matrix, so that only matrices of the smaller side are multiplied until
    the last step.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T).T
    matrix = matrix.float()
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    gram = matrix @ matrix.T
    factor = polynomial = _polynomial(gram)
    for _ in range(_ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        factor = polynomial @ factor
    return factor @ matrix


def _polynomial(gram: Tensor) -> Tensor:
    """Return a + b G + c G²."""
    result = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
    result.diagonal().add_(_A)
    return result


class Muon(torch.optim.AdamW):
    """Muon for parameter groups with `"orthogonal": True`, AdamW for the others.

    An orthogonal step is scaled to a root mean square of 0.2 · lr, about that of AdamW (Liu et al., 2025, "Muon is
    scalable for LLM training", section 2.2), so that both kinds take the same learning rate. torch.optim.Muon takes
    matrices only, and computes in bfloat16.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float = 0.95, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self.momentum = momentum

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Do one step. Clears the gradients of orthogonal parameters."""
        for group in self.param_groups:
            if not group.get("orthogonal"):
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                average = state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
                update = orthogonalise(parameter.grad.lerp(average, self.momentum).flatten(1))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-0.2 * group["lr"] * math.sqrt(max(update.shape)))
                parameter.grad = None  # so that AdamW skips it
        super().step()
