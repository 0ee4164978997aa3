import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.denoisers.flops import count_flops, shared_share

CONDITIONS = {"sd-epsilon": ["a cat", "a dog"], "dit": [0, 1], "class-unet": [0, 1]}


@pytest.fixture(params=CONDITIONS)
def denoiser_and_conditioning(request, model_folder):
    denoiser = load_denoiser(model_folder(request.param), device="cpu", dtype="float32")
    return denoiser, denoiser.condition(CONDITIONS[request.param])


def multiply_adds_by_hand(network, call):
    """Count those of convolutions and linear layers by textbook formulas, and of attention as 2·S·T·C per product."""
    total = 0

    def layer(module, _, output):
        nonlocal total
        if isinstance(module, torch.nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            total += output.numel() * module.in_features

    def attention(module, _, kwargs, output):
        nonlocal total
        query = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
        other = kwargs.get("encoder_hidden_states")
        length = query.shape[1] if other is None else other.shape[1]
        total += 2 * query.shape[0] * query.shape[1] * length * module.to_q.out_features

    hooks = [m.register_forward_hook(layer) for m in network.modules()]
    hooks += [m.register_forward_hook(attention, with_kwargs=True) for m in network.modules() if hasattr(m, "to_q")]
    call()
    for h in hooks:
        h.remove()
    return total


def test_operations_equal_the_textbook_formulas(denoiser_and_conditioning):
    denoiser, conditioning = denoiser_and_conditioning
    noisy, t = torch.randn(2, *denoiser.latent_shape), torch.tensor([5, 7])
    by_hand = multiply_adds_by_hand(denoiser.network, lambda: denoiser.forward(noisy, t, conditioning))
    assert count_flops(denoiser, conditioning, torch.arange(2)) == 2 * by_hand > 0


def test_nothing_is_computed(denoiser_and_conditioning):
    denoiser, conditioning = denoiser_and_conditioning
    before = {k: v.clone() for k, v in denoiser.network.state_dict().items()}
    count_flops(denoiser, conditioning, torch.arange(2))
    after = denoiser.network.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    big = torch.zeros(10_000, dtype=torch.int64)  # would take seconds and gigabytes
    many = count_flops(denoiser, conditioning[big], torch.arange(10_000))
    assert many == 5_000 * count_flops(denoiser, conditioning, torch.arange(2))


def test_the_shared_part_is_that_of_the_modules_that_run_once(model_folder):
    denoiser = load_denoiser(model_folder("sd-epsilon"), device="cpu", dtype="float32")
    conditioning = denoiser.condition(["a cat"])
    counter = FlopCounterMode(display=False, depth=10)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        denoiser.forward(torch.randn(1, 4, 8, 8), torch.tensor([5]), conditioning)
    counts = {
        name.removeprefix("UNet2DConditionModel."): sum(c.values()) for name, c in counter.get_flop_counts().items()
    }
    first = "down_blocks.0.attentions.0."
    shared = [
        "conv_in",
        "time_embedding",
        "down_blocks.0.resnets.0",
        f"{first}proj_in",
        f"{first}transformer_blocks.0.attn1",
    ]
    expected = sum(counts[name] for name in shared) / counts["UNet2DConditionModel"]
    assert shared_share(denoiser, conditioning) == pytest.approx(expected)
    assert 0.05 < expected < 0.9
    denoiser.prefix.remove()
    assert shared_share(denoiser, conditioning) == 0
