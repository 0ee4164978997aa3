"""Class inputs of networks, on tiny pipelines of every family."""

from functools import cache

import pytest
import torch
from builders import BUILDERS, class_unet
from gaussians import gaussian

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.errors import InputError

CLASSES = {
    "sd-epsilon": ["a cat", "a dog", "x"],
    "sd-v": ["a cat", "a dog", "x"],
    "dit": [0, 4, 2],
    "class-unet": [2, 0, 1],
    "late-unet": [2, 0, 1],
    "late-dit": [2, 0, 1],
}


@pytest.fixture(scope="module")
def load(model_folder):
    """Load a model in float64, so that finite differences can be small."""

    @cache
    def load(name):
        if name == "gaussian":
            return gaussian(3)
        denoiser = load_denoiser(model_folder(name), device="cpu", dtype="float32")
        denoiser.network.double()
        return denoiser

    return load


@pytest.fixture(params=[*BUILDERS, "gaussian"])
def case(request, load):
    denoiser = load(request.param)
    conditioning = denoiser.condition(CLASSES.get(request.param, [0, 1, 2]))
    noisy = torch.randn(4, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    return denoiser, conditioning, noisy, torch.tensor([10, 500, 500, 900])


def test_classes_that_are_no_table_of_embeddings(tmp_path):
    class_unet(tmp_path, class_embed_type="timestep")
    denoiser = load_denoiser(tmp_path, device="cpu", dtype="float32")
    inputs = denoiser.class_inputs(torch.tensor([1]), denoiser.condition([0, 1]))
    with pytest.raises(InputError, match="as 'timestep', not by embeddings"), inputs:
        pass


def test_the_mean_of_one_class_is_that_class(case):
    denoiser, conditioning, noisy, t = case
    for c in range(3):
        rows = torch.tensor([c] * 4)
        expected = denoiser.forward(noisy, t, conditioning[rows])
        with denoiser.class_inputs(t, conditioning[torch.tensor([c, c])]) as inputs:
            torch.testing.assert_close(denoiser.forward(noisy, t, inputs.mean), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(denoiser.forward(noisy, t, conditioning[rows]), expected, rtol=0, atol=0)  # as before


def test_gradients_are_those_of_finite_differences(case):
    """Tests derivatives from the mean towards each class. Naming a class more often moves the mean towards it."""
    denoiser, conditioning, noisy, t = case

    def total(rows, backward=False):
        with torch.enable_grad(), denoiser.class_inputs(t, conditioning[torch.tensor(rows)]) as inputs:
            sums = denoiser.forward(noisy, t, inputs.mean).square().flatten(1).mean(1)
            if not backward:
                return sums.detach().double()
            return inputs.project(torch.autograd.grad(sums.sum(), inputs.leaves)).double()

    def ahead(c, times):
        """Return how far the mean moves towards a class that is named once more."""
        evenly = [0, 1, 2] * times
        return (total([*evenly, c]) - total(evenly)) * (3 * times + 1)

    products = total([0, 1, 2], backward=True)
    for c in range(3):  # what is of second order in the step cancels
        torch.testing.assert_close(products[:, c], 2 * ahead(c, 200) - ahead(c, 100), rtol=0.1, atol=3e-5)
    assert products.abs().max() > 3e-4  # ten times what the comparison lets pass
    torch.testing.assert_close(products.sum(1), torch.zeros(4).double(), rtol=0, atol=1e-5)
