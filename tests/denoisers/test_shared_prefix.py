"""Rows of one noisy latent share work, and results do not change."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from builders import record_rows, stable_diffusion

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.denoisers.shared_prefix import Prefix

T = torch.tensor([3, 500, 999])
INDEX = torch.tensor([1, 0, 1, 1, 2, 0])  # in no order, and of unequal counts
UNETS = {
    "cross-attention first": {},
    "linear projection": {"use_linear_projection": True},
    "plain block first": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "attention to the prompt alone": {"only_cross_attention": True},
    "attention without a transformer": {
        "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    },
}


@pytest.fixture(params=UNETS)
def unet(request):
    return UNETS[request.param]


@pytest.fixture
def denoiser(unet, tmp_path):
    stable_diffusion(tmp_path, unet=unet)
    return load_denoiser(tmp_path, device="cpu", dtype="float32")


def predict(denoiser):
    noisy = torch.randn(3, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = denoiser.condition(["a cat", "a dog", "a pug", "", "x", "y"])
    return denoiser.predict_noise(noisy, T, conditioning, INDEX)


def test_shared_work_changes_no_prediction(denoiser):
    shared = predict(denoiser)
    denoiser.prefix.remove()
    torch.testing.assert_close(shared, predict(denoiser), rtol=1e-5, atol=1e-5)
    assert len(shared.unique(dim=0)) == 6


def test_the_first_layers_see_one_row_of_each_latent_and_the_others_all(denoiser):
    rows = {}
    for name, module in denoiser.network.named_modules():
        record_rows(module, rows, name)
    predict(denoiser)
    first = denoiser.network.down_blocks[0]
    assert rows["conv_in"] == rows["time_embedding"] == rows["down_blocks.0.resnets.0"] == 3
    if hasattr(first, "attentions") and hasattr(first.attentions[0], "norm"):
        assert rows["down_blocks.0.attentions.0.norm"] == rows["down_blocks.0.attentions.0.proj_in"] == 3
        own = first.attentions[0].transformer_blocks[0].only_cross_attention
        assert rows["down_blocks.0.attentions.0.transformer_blocks.0.attn1"] == (6 if own else 3)
        assert rows["down_blocks.0.attentions.0.transformer_blocks.0.ff"] == 6
    assert rows["mid_block"] == rows["conv_out"] == rows["up_blocks.1"] == 6
    rows.clear()
    denoiser.forward(torch.randn(6, 4, 8, 8), T[INDEX], denoiser.condition(["a cat"] * 6))
    assert set(rows.values()) == {6}  # only predict_noise knows which rows are alike


@pytest.mark.parametrize("at_once", [1, 4])
def test_calls_of_one_size(at_once):
    """Calls have one size for any number of latents; the last call is filled up."""
    calls = []

    class Layer(torch.nn.Module):
        def forward(self, x, *, y):
            calls.append(len(x))
            return (x + y,)

    layer, x = Layer(), torch.arange(12.0)
    y = 10 * x
    prefix = Prefix([layer], [layer], at_once)
    for index in (torch.arange(12), torch.tensor([3] * 5 + [0, 1, 2, 4, 5, 5, 0])):
        _, first = np.unique(index, return_index=True)
        calls.clear()
        with prefix.fixed_rows(), prefix.shared(index, torch.device("cpu")):
            (output,) = layer(x, y=y)
        assert calls == [at_once] * -(-len(first) // at_once)
        assert torch.equal(output, 11 * x[first][np.unique(index, return_inverse=True)[1]])
        calls.clear()
        with prefix.shared(index, torch.device("cpu")):
            assert torch.equal(layer(x, y=y)[0], output)
        assert calls == [len(first)]  # as before
    prefix.remove()
    assert torch.equal(layer(x, y=y)[0], 11 * x)


def test_an_error_within_leaves_nothing_behind():
    layer = torch.nn.Linear(2, 2)
    prefix = Prefix([layer])
    with pytest.raises(RuntimeError), prefix.shared(torch.tensor([0, 0]), torch.device("cpu")):
        raise RuntimeError
    assert layer(torch.ones(5, 2)).shape == (5, 2)


class Layer(torch.nn.Module):
    def forward(self, x):
        if len(x) != 1:
            raise ValueError("rows are not shared")
        return x


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError])
def test_modules_are_as_they_were(own, error):
    """A `forward` on the instance, as set by accelerate's hooks, is restored. Other modules have none afterwards."""
    layer = Layer()
    if own:
        layer.forward = lambda x: Layer.forward(layer, x) + 1
    before = dict(vars(layer))
    prefix, rows = Prefix([layer]), torch.tensor([0, 0])
    assert vars(layer) == before
    with pytest.raises(error) if error else nullcontext(), prefix.shared(rows, torch.device("cpu")):
        assert torch.equal(layer(torch.ones(2, 1)), torch.full((2, 1), 2.0 if own else 1.0))
        if error:
            raise error
    assert vars(layer) == before
    with pytest.raises(ValueError, match="not shared"):
        layer(torch.ones(2, 1))
