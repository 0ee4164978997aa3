"""Properties of late conditioning that the contract suite does not cover."""

import pytest
import torch
from builders import record_rows

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.denoisers.flops import count_flops, shared_share
from diffusion_classifier.denoisers.tuning import seconds_of_call

T = torch.tensor([3, 500])
INDEX = torch.tensor([1, 0, 1, 1, 0, 0])


@pytest.fixture(params=["late-unet", "late-dit"])
def denoiser(request, model_folder):
    return load_denoiser(model_folder(request.param), device="cpu", dtype="float32")


def predict(denoiser):
    noisy = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    conditioning = denoiser.condition([0, 1, 2])[torch.tensor([0, 0, 1, 2, 1, 2])]
    return denoiser.predict_noise(noisy, T, conditioning, INDEX)


def rows_seen(denoiser):
    """Return the rows of the trunk, and of the head before and after the class enters it."""
    rows, head = {}, denoiser.network.head
    first = next(m for m in denoiser.network.trunk.modules() if isinstance(m, torch.nn.Conv2d))
    block = head.down_blocks[0].resnets[0]
    parts = {"trunk": first, "start": head.conv_in, "first": block.conv1, "second": block.conv2, "end": head.conv_out}
    for name, module in parts.items():
        record_rows(module, rows, name)
    return rows


SHARED = {"trunk": 2, "start": 2, "first": 2, "second": 6, "end": 6}


def test_the_trunk_runs_once_for_each_latent(denoiser):
    rows = rows_seen(denoiser)
    shared = predict(denoiser)
    assert rows == SHARED
    denoiser.prefix.remove()
    rows = rows_seen(denoiser)
    torch.testing.assert_close(predict(denoiser), shared, rtol=1e-5, atol=1e-5)
    assert rows == dict.fromkeys(SHARED, 6)
    assert len(shared.unique(dim=0)) == 6


def test_several_classes_of_a_latent_at_once(denoiser):
    """Training uses this."""
    noisy = torch.randn(2, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0, 2])
    rows = rows_seen(denoiser)
    with torch.no_grad():
        together = denoiser.network(noisy, T, labels).sample
        assert rows == dict.fromkeys(SHARED, 6) | {"trunk": 2}
        each = [denoiser.network(noisy[[b // 3]], T[[b // 3]], labels[[b]]).sample for b in range(6)]
    torch.testing.assert_close(together, torch.cat(each), rtol=1e-5, atol=1e-5)


def test_cost_counts_the_trunk_once(denoiser):
    conditioning, one = denoiser.condition([0, 1, 2]), torch.zeros(1, dtype=torch.int64)
    alone = count_flops(denoiser, conditioning[one], one)
    three = count_flops(denoiser, conditioning, torch.zeros(3, dtype=torch.int64))
    head = (three - alone) / 2
    assert 0 < head < alone / 2
    assert shared_share(denoiser, conditioning) == pytest.approx(1 - head / alone)


def test_compiled_it_still_shares_the_trunk(denoiser, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compiled.append(module))
    denoiser.compile()
    assert compiled == [denoiser.network.head]
    assert denoiser.compiled
    rows = rows_seen(denoiser)
    predict(denoiser)
    assert rows == dict.fromkeys(SHARED, 6) | {"trunk": 2}


def test_its_batch_size_is_measured(denoiser):
    assert seconds_of_call(denoiser, denoiser.condition([0, 1, 2]), 8) > 0


def test_no_bit_depends_on_the_other_latents(denoiser):
    """The trunk is shared nevertheless, in calls of eight rows."""
    share = shared_share(denoiser, denoiser.condition([0]))
    rows = rows_seen(denoiser)
    with denoiser.fixed_rows():
        head_alone = shared_share(denoiser, denoiser.condition([0]))
        assert 0 < head_alone < share  # the head's first layers are not shared now
        few = predict(denoiser)
        assert rows == dict.fromkeys(SHARED, 6) | {"trunk": 8}
    noisy = torch.randn(12, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.cat([T, torch.arange(10) * 90])
    index = torch.tensor([1, 0, 1, 11, 7, 3])
    conditioning = denoiser.condition([0, 1, 2])[torch.tensor([0, 0, 1, 2, 1, 2])]
    with denoiser.fixed_rows():
        many = denoiser.predict_noise(noisy, t, conditioning, index)
    assert torch.equal(many[:3], few[:3])
    assert shared_share(denoiser, denoiser.condition([0])) == share
    rows.clear()
    predict(denoiser)
    assert rows == SHARED  # as before
