import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.denoisers.base import scheduler_config
from diffusion_classifier.diffusion.schedules import read_scheduler
from diffusion_classifier.errors import InputError
from diffusion_classifier.training.class_model import _batch, build_network, train
from diffusion_classifier.training.denoising import OBJECTIVES, TrainConfig
from diffusion_classifier.training.images import TrainingImages
from diffusion_classifier.training.joint import START, cross_entropy, draw_rivals

EARLY = TrainConfig(
    channels=(8,), layers=1, batch_size=6, epochs=2, warmup=2, learning_rate=1e-2, label_dropout=0.4, joint=0.3
)
LATE = replace(EARLY, head=(8,), features=3)
TRANSFORMER = replace(LATE, trunk="transformer", channels=(16,), layers=2)
DEEP = replace(EARLY, channels=(8, 16), head=(8, 16), head_layers=2, features=3, rivals=1, optimizer="muon")


def toy(n, seed=0):
    """Return images of three classes, which differ in brightness and alternate."""
    labels = torch.arange(n) % 3
    noise = torch.randint(-30, 31, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    images = (40 + 80 * labels.view(-1, 1, 1, 1) + noise).to(torch.uint8)
    return TrainingImages(images, labels, ("dark", "grey", "light"))


DATA = toy(18)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 9), st.integers(0, 12), st.integers(0, 99))
def test_rivals_are_different_classes_but_the_true_one(num_classes, rivals, seed):
    labels = torch.arange(20) % num_classes
    drawn = draw_rivals(labels, num_classes, rivals, torch.Generator().manual_seed(seed))
    assert drawn.shape == (20, min(rivals or num_classes, num_classes - 1))
    for label, others in zip(labels.tolist(), drawn.tolist(), strict=True):
        assert len({label, *others}) == 1 + len(others)
        assert set(others) <= set(range(num_classes))


def test_every_class_is_a_rival_as_often():
    labels = torch.zeros(6000, dtype=torch.int64)
    counts = torch.bincount(draw_rivals(labels, 5, 2, torch.Generator().manual_seed(0)).flatten(), minlength=5)
    assert counts[0] == 0
    assert (counts[1:] - 3000).abs().max() < 150  # four standard deviations


def test_cross_entropy():
    errors = torch.rand(7, 4, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(3.0)
    expected = torch.nn.functional.cross_entropy(-3 * errors, torch.zeros(7, dtype=torch.int64), reduction="none")
    torch.testing.assert_close(cross_entropy(errors, scale, torch.tensor(4)), expected)
    # Where all others are alike, some of them stand for all.
    alike = torch.cat([errors[:, :1], errors[:, 1:2].expand(-1, 9)], dim=1)
    ten = torch.tensor(10)
    torch.testing.assert_close(cross_entropy(alike[:, :3], scale, ten), cross_entropy(alike, scale, ten))


def test_columns_that_do_not_count():
    errors = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    scale, counts = torch.tensor(3.0, requires_grad=True), torch.tensor([4, 3, 6])
    absent = torch.tensor([[False] * 4, [False, False, False, True], [False, False, False, True]])
    found = cross_entropy(errors, scale, counts, absent)
    for i, kept in enumerate((4, 3, 3)):
        torch.testing.assert_close(found[i : i + 1], cross_entropy(errors[i : i + 1, :kept], scale, counts[i]))
    found.sum().backward()
    assert (errors.grad[absent] == 0).all()
    assert bool(scale.grad.isfinite())


def test_a_batch_that_is_shown_without_classes(tmp_path):
    losses = []
    config = replace(EARLY, joint=0.3, label_dropout=1 - 1e-9, epochs=0.1)
    train(DATA, config, tmp_path, mixed_precision=False, on_step=lambda p: losses.append(p.loss))
    assert losses
    assert all(math.isfinite(loss) for loss in losses)


@pytest.mark.parametrize("config", [EARLY, LATE, TRANSFORMER, DEEP, replace(LATE, weighting="noise")])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_that_of_a_plain_loop(config, objective, tmp_path):
    config = replace(config, objective=objective)
    losses = []
    train(DATA, config, tmp_path, mixed_precision=False, on_step=lambda p: losses.append(p.loss))
    network, scheduler = build_network(config, DATA)
    schedule, _ = read_scheduler(scheduler_config(scheduler))
    x, noise, t, shown = _batch(0, DATA, config, schedule)
    network.train()

    def predict(noisy, t, c):
        if not config.head:
            return network(noisy, t, class_labels=c).sample
        classless = {} if config.trunk == "unet" else {"class_labels": torch.tensor([1])}
        seen = torch.cat([noisy, network.trunk(noisy, t, **classless).sample], 1)
        return network.head(seen, t, class_labels=c).sample

    denoising, entropy = [], []
    for i in range(len(x)):
        alpha, sigma = (float(a) for a in schedule(t[i]))
        noisy = alpha * x[i] + sigma * noise[i]
        errors = []
        for c in shown[i]:
            with torch.no_grad():
                output = predict(noisy[None], t[i : i + 1], c[None])[0]
            goal, eps = {
                "epsilon": (noise[i], output),
                "v_prediction": (alpha * noise[i] - sigma * x[i], alpha * output + sigma * noisy),
                "sample": (x[i], (noisy - alpha * output) / sigma),
                "flow": (noise[i] - x[i], noisy + alpha * output),
            }[objective]
            by_noise = float((eps - noise[i]).square().mean())
            by_output = float((output - goal).square().mean())
            errors.append(by_noise)
            if len(errors) == 1:
                denoising.append(by_noise if config.weighting == "noise" else by_output)
        if shown[i, 0] < 3:
            terms = np.exp(-START * (np.array(errors) - errors[0]))
            terms[1:] *= 2 / len(terms[1:])
            entropy.append(math.log(terms.sum()))
    assert 0 < len(entropy) < len(x)  # some labels were dropped
    assert losses[0] == pytest.approx(np.mean(denoising) + 0.3 * np.mean(entropy), rel=1e-3)


@pytest.mark.parametrize("config", [LATE, DEEP, replace(TRANSFORMER, optimizer="muon")])
def test_killed_and_resumed_equals_undisturbed(config, tmp_path):
    class Killed(BaseException):
        pass

    def kill(p):
        if p.step == 4:
            raise Killed

    def run(out, on_step=lambda _: None):
        train(DATA, config, out, checkpoint_every=3, on_step=on_step)
        return load_denoiser(out, device="cpu", dtype="float32").network.state_dict()

    with pytest.raises(Killed):
        run(tmp_path / "killed", kill)
    went_on, undisturbed = run(tmp_path / "killed"), run(tmp_path / "undisturbed")
    assert went_on.keys() == undisturbed.keys()
    assert all(torch.equal(went_on[name], undisturbed[name]) for name in went_on)


@pytest.mark.parametrize("config", [DEEP, TRANSFORMER, replace(TRANSFORMER, dropout=0.1)])
def test_the_global_generator_is_left_alone(config, tmp_path):
    before = torch.get_rng_state()
    train(DATA, replace(config, epochs=1), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_joint_objective_makes_a_late_head_heed_the_class(tmp_path):
    """Tests with a single draw, on new images."""
    config = replace(LATE, patch_size=2, batch_size=16, epochs=30, label_dropout=0.1, joint=0.1, ema=0.95)
    train(toy(64), config, tmp_path)
    fresh = toy(30, seed=2)
    classifier = DiffusionClassifier.from_pretrained(tmp_path, device="cpu", dtype="float32", batch_size=90)
    results = classifier.classify([image[0].numpy() for image in fresh.images], strategy="fixed:1")
    assert sum(r.label == fresh.class_names[y] for r, y in zip(results, fresh.labels.tolist(), strict=True)) >= 27
    share = classifier.denoiser.prefix.share
    assert results[0].cost == pytest.approx(1 + 2 * (1 - share))


def test_training_goes_on_from_a_late_model(tmp_path):
    train(DATA, replace(LATE, epochs=1), tmp_path / "first")
    config = replace(LATE, start=str(tmp_path / "first"))
    network, _ = build_network(config, DATA)
    first = load_denoiser(tmp_path / "first", device="cpu", dtype="float32").network.state_dict()
    assert all(torch.equal(p, first[name]) for name, p in network.state_dict().items())
    with pytest.raises(InputError, match="its network has another shape"):
        build_network(replace(config, head=()), DATA)
