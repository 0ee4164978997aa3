import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_classifier.training.muon import Muon, orthogonalise


def matrix(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestOrthogonalise:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99), st.floats(1e-6, 1e6))
    def test_keeps_the_directions_and_levels_their_sizes(self, rows, columns, seed, scale):
        """Compares with the singular value decomposition. Directions with tiny singular values may stay small."""
        m = matrix((rows, columns), seed).double() * scale
        u, s, vt = torch.linalg.svd(m, full_matrices=False)
        levelled = u.T @ orthogonalise(m).double() @ vt.T
        torch.testing.assert_close(levelled, levelled.diagonal().diag(), rtol=0, atol=1e-3)
        clear = s > 0.05 * s.square().sum().sqrt()
        assert (levelled.diagonal()[clear] > 0.6).all()
        assert (levelled.diagonal() < 1.3).all()

    def test_zero_stays_zero(self):
        assert torch.equal(orthogonalise(torch.zeros(3, 5)), torch.zeros(3, 5))


SETTINGS = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.5}


def steps(optimizer, *parameters):
    """Do three steps with artificial gradients, which are the same in every call."""
    for step in range(3):
        for i, parameter in enumerate(parameters):
            parameter.grad = matrix(parameter.shape, 10 * step + i + 1)
        optimizer.step()


class TestMuon:
    @pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
    def test_matrices_go_as_with_torch(self, shape):
        """torch computes in bfloat16."""
        ours, theirs = (torch.nn.Parameter(matrix(shape)) for _ in range(2))
        steps(Muon([{"params": [ours], "orthogonal": True}], **SETTINGS), ours)
        steps(torch.optim.Muon([theirs], lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"), theirs)
        assert (theirs - matrix(shape)).abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01)

    def test_a_kernel_is_a_matrix_of_its_output_channels(self):
        kernel = torch.nn.Parameter(matrix((4, 3, 2, 2)))
        flat = torch.nn.Parameter(matrix((4, 3, 2, 2)).flatten(1))
        for parameter in (kernel, flat):
            optimizer = Muon([{"params": [parameter], "orthogonal": True}], **SETTINGS)
            parameter.grad = matrix((4, 3, 2, 2), 1).view_as(parameter)
            optimizer.step()
        torch.testing.assert_close(kernel.flatten(1), flat)

    def test_the_others_go_as_with_adamw(self):
        ours, theirs, kernel = (torch.nn.Parameter(matrix(5)), torch.nn.Parameter(matrix(5)), matrix((4, 4)))
        kernel = torch.nn.Parameter(kernel)
        groups = [{"params": [kernel], "orthogonal": True}, {"params": [ours], "orthogonal": False}]
        steps(Muon(groups, **SETTINGS), ours, kernel)
        steps(torch.optim.AdamW([theirs], **SETTINGS), theirs)
        assert torch.equal(ours, theirs)

    def test_a_parameter_without_gradient_stays(self):
        still = torch.nn.Parameter(matrix((4, 4)))
        Muon([{"params": [still], "orthogonal": True}], **SETTINGS).step()
        assert torch.equal(still, matrix((4, 4)))
