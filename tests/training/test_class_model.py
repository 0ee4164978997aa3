import json
import math
import random
import shutil
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.denoisers.base import scheduler_config
from diffusion_classifier.diffusion.schedules import RectifiedFlow, read_scheduler
from diffusion_classifier.errors import InputError
from diffusion_classifier.search.jobs import Cost, ScoredImage
from diffusion_classifier.training import checkpoint as checkpoints
from diffusion_classifier.training import class_model as module
from diffusion_classifier.training import denoising
from diffusion_classifier.training.checkpoint import CHECKPOINT, Checkpoint
from diffusion_classifier.training.class_model import OUTER, _batch, build_network, train
from diffusion_classifier.training.denoising import OBJECTIVES, TrainConfig
from diffusion_classifier.training.images import TrainingImages
from diffusion_classifier.training.loop import (
    Callbacks,
    batch_rows,
    build_optimizer,
    fit,
    learning_rate,
    num_steps,
    seeded,
)


def toy(n, seed=0):
    """Return images whose brightness is determined by their class. Classes alternate."""
    labels = torch.arange(n) % 2
    noise = torch.randint(-30, 31, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    return TrainingImages((60 + 120 * labels.view(-1, 1, 1, 1) + noise).to(torch.uint8), labels, ("dark", "light"))


DATA = toy(19)
# 12 steps, over the ends of epochs; everything random is switched on.
CONFIG = TrainConfig(
    channels=(8,), layers=1, batch_size=5, epochs=3, warmup=2, learning_rate=1e-2, ema=0.9, dropout=0.2, flip=True
)
NUM_STEPS = 12


def run(out, config=CONFIG, data=DATA, **options):
    """Train, and return the losses by step."""
    losses = {}
    train(data, config, out, on_step=lambda p: losses.update({p.step: p.loss}), **options)
    return losses


def checkpoint(out):
    """Return the tensors of the checkpoint in a folder, and its step."""
    state = json.loads((out / CHECKPOINT / "run.json").read_text())
    return load_file(out / CHECKPOINT / state["tensors"]), state["step"]


def weights(out):
    return load_file(out / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class Killed(BaseException):
    pass


def kill_at(step):
    def on_step(progress):
        if progress.step == step:
            raise Killed

    return on_step


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of `CONFIG`, and its losses."""
    out = tmp_path_factory.mktemp("finished")
    return out, run(out, checkpoint_every=4)


class TestConfig:
    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("objective", "noise"),
            ("objective", ""),
            ("times", "late"),
            ("weighting", "uniform"),
            ("beta_schedule", "cosine"),
            ("patch_size", 0),
            ("channels", ()),
            ("channels", (32, 0)),
            ("layers", 0),
            ("dropout", 1.0),
            ("dropout", -0.1),
            ("head", (8, 0)),
            ("trunk", "mlp"),
            ("head_layers", 0),
            ("features", 0),
            ("joint", -0.1),
            ("joint", math.inf),
            ("rivals", -1),
            ("epochs", 0),
            ("epochs", math.inf),
            ("epochs", math.nan),
            ("batch_size", 0),
            ("optimizer", "sgd"),
            ("learning_rate", 0.0),
            ("learning_rate", -1e-3),
            ("learning_rate", math.nan),
            ("warmup", -1),
            ("weight_decay", -0.1),
            ("ema", 1.0),
            ("ema", -0.1),
            ("label_dropout", 1.0),
            ("label_dropout", math.nan),
            ("seed", -1),
            ("seed", 2**63),
        ],
    )
    def test_unfit_values_are_refused_with_name_and_value(self, setting, value):
        with pytest.raises(InputError) as e:
            TrainConfig(**{setting: value})
        assert setting in str(e.value)
        assert str(value) in str(e.value)

    def test_a_density_of_times_below_zero_is_refused(self):
        with pytest.raises(InputError, match=r"none below 0 and some above; got \[1.0, -1.0\]"):
            TrainConfig(times=(1.0, -1.0))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"channels": (64,)}, "trunk below a head"),
            ({"channels": (64, 128), "head": (8,)}, r"got \(64, 128\)"),
            ({"channels": (100,), "head": (8,)}, r"got \(100,\)"),
        ],
    )
    def test_transformers_of_other_shapes_are_refused(self, settings, message):
        with pytest.raises(InputError, match=message):
            TrainConfig(trunk="transformer", **settings)

    def test_the_stored_settings_of_older_checkpoints_stay_valid(self):
        """Resuming compares these: a changed name or default would reject runs under way."""
        assert {f.name: f.default for f in fields(TrainConfig)} == {
            "objective": "v_prediction", "beta_schedule": "linear", "times": "even", "weighting": "output",
            "patch_size": 1, "channels": (64, 128), "layers": 2,
            "attention": False, "dropout": 0.0, "head": (), "trunk": "unet", "head_layers": 1, "features": 64,
            "joint": 0.0, "rivals": 0,
            "epochs": None, "batch_size": 32, "optimizer": "adamw",
            "learning_rate": 1e-3, "warmup": 500,
            "weight_decay": 0.01, "ema": 0.999, "label_dropout": 0.1, "flip": False, "start": "", "seed": 0,
        }  # fmt: skip

    @pytest.mark.parametrize(("epochs", "steps"), [(1, 8), (0.5, 4), (2.01, 17), (1e-9, 1)])
    def test_number_of_steps(self, epochs, steps):
        assert num_steps(TrainConfig(epochs=epochs, batch_size=4), 32) == steps

    @pytest.mark.parametrize(("num_images", "steps"), [(1, 500), (199, 500), (200, 500), (201, 503), (4000, 10_000)])
    def test_few_images_are_passed_over_often(self, num_images, steps):
        assert num_steps(TrainConfig(batch_size=4), num_images) == steps

    @pytest.mark.parametrize(("channels", "patch_size"), [((8, 8, 8, 8, 8), 1), ((8,), 3), ((8, 8), 8)])
    def test_a_size_that_cannot_be_halved(self, tmp_path, channels, patch_size):
        factor = patch_size * 2 ** (len(channels) - 1)
        with pytest.raises(InputError, match=f"images of 8 pixels .* multiple of {factor}"):
            run(tmp_path / "out", replace(CONFIG, channels=channels, patch_size=patch_size))


class TestStreams:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**63 - 1))
    def test_every_epoch_has_each_image_once(self, num_images, batch_size, seed):
        epochs = 3
        steps = math.ceil(epochs * num_images / batch_size)
        rows = torch.cat([batch_rows(step, num_images, batch_size, seed) for step in range(steps)]).tolist()
        for epoch in range(epochs):
            assert sorted(rows[epoch * num_images : (epoch + 1) * num_images]) == list(range(num_images))

    def test_epochs_and_seeds_differ_in_order(self):
        orders = [batch_rows(*place) for place in ((0, 50, 50, 0), (1, 50, 50, 0), (0, 50, 50, 1))]
        assert len({tuple(order.tolist()) for order in orders}) == 3

    def test_a_batch_depends_on_seed_and_step_alone(self):
        _, scheduler = build_network(CONFIG, DATA)
        schedule, _ = read_scheduler(scheduler_config(scheduler))
        forwards = [_batch(step, DATA, CONFIG, schedule) for step in range(6)]
        torch.manual_seed(1)
        backwards = [_batch(step, DATA, CONFIG, schedule) for step in reversed(range(6))]
        for one, two in zip(forwards, reversed(backwards), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        other = _batch(0, DATA, replace(CONFIG, seed=1), schedule)
        assert not torch.equal(other[1], forwards[0][1])
        assert not torch.equal(forwards[1][1], forwards[0][1])

    def test_a_batch_holds_what_it_should(self):
        config = replace(CONFIG, batch_size=19, label_dropout=0.5, patch_size=2)
        x, noise, _, shown = _batch(0, DATA, config, RectifiedFlow())
        (labels,) = shown.T
        rows = batch_rows(0, 19, config.batch_size, config.seed)
        images = torch.nn.functional.pixel_shuffle(x, 2)
        as_they_are = (DATA.images[rows].float() / 127.5 - 1 - images).abs().amax((1, 2, 3)) < 1e-6
        mirrored = (DATA.images[rows].flip(-1).float() / 127.5 - 1 - images).abs().amax((1, 2, 3)) < 1e-6
        assert (as_they_are ^ mirrored).all()
        assert as_they_are.any()
        assert mirrored.any()
        dropped = labels == 2
        assert torch.equal(labels[~dropped], DATA.labels[rows][~dropped])
        assert dropped.any()
        assert not dropped.all()
        assert noise.shape == x.shape == (19, 4, 4, 4)

    @pytest.mark.parametrize("objective", ["epsilon", "flow"])
    def test_times_are_stratified(self, objective):
        config = replace(CONFIG, batch_size=8, objective=objective)
        schedule, _ = read_scheduler(scheduler_config(build_network(config, DATA)[1]))
        for step in range(20):
            _, _, t, _ = _batch(step, DATA, config, schedule)
            assert sorted((t // 125).tolist()) == list(range(8))

    def test_a_time_that_rounding_would_put_beyond_the_end(self, monkeypatch):
        """(127 + the largest random number) / 128 is 1 in float32, and there is no timestep 1000."""
        monkeypatch.setattr(torch, "rand", lambda n, generator: torch.full((n,), 1 - 2**-24))  # noqa: ARG005
        schedule, _ = read_scheduler(scheduler_config(build_network(CONFIG, DATA)[1]))
        _, _, t, _ = _batch(0, DATA, replace(CONFIG, batch_size=128), schedule)
        assert t.max() == 999

    def test_learning_rate(self):
        config = TrainConfig(learning_rate=0.5, warmup=10)
        rates = [learning_rate(step, 1000, config) for step in range(1001)]
        assert rates[:3] == pytest.approx([0.05, 0.10, 0.15], rel=1e-3)
        assert max(rates) == pytest.approx(rates[9]) == pytest.approx(0.5, rel=1e-3)
        assert rates[500] == pytest.approx(0.25)
        assert rates[250] == pytest.approx(0.25 * (1 + math.sqrt(0.5)))
        assert all(a > b for a, b in pairwise(rates[9:]))
        assert rates[1000] == 0

    def test_no_warm_up(self):
        assert learning_rate(0, 10, TrainConfig(learning_rate=0.5, warmup=0)) == 0.5

    def test_few_steps_are_not_all_warm_up(self):
        rates = [learning_rate(step, 20, TrainConfig(learning_rate=0.5, warmup=500)) for step in range(20)]
        assert rates[0] == pytest.approx(0.25)
        assert max(rates) == rates[1] == pytest.approx(0.5, rel=0.01)


class TestStart:
    def test_training_starts_from_the_weights_of_another_model(self, tmp_path, finished):
        config = replace(CONFIG, start=str(finished[0]), learning_rate=1e-12, weight_decay=0.0, ema=0.0)
        run(tmp_path / "m", config)
        there, here = weights(finished[0]), weights(tmp_path / "m")
        assert there.keys() == here.keys()
        assert all(torch.allclose(there[name], here[name], atol=1e-6) for name in there)

    def test_a_model_that_reads_text_is_refused(self, tmp_path, model_folder):
        with pytest.raises(InputError, match="its classes are texts"):
            run(tmp_path / "m", replace(CONFIG, start=str(model_folder("sd-epsilon"))))

    def test_a_run_goes_on_where_it_was_and_not_at_its_start(self, tmp_path, finished):
        config = replace(CONFIG, start=str(finished[0]))
        with pytest.raises(Killed):
            train(DATA, config, tmp_path / "killed", checkpoint_every=4, on_step=kill_at(6))
        losses = run(tmp_path / "whole", config)
        assert run(tmp_path / "killed", config) == {step: losses[step] for step in range(5, NUM_STEPS + 1)}

    @pytest.mark.parametrize(
        ("change", "data", "message"),
        [
            ({"channels": (16,)}, DATA, "another shape"),
            ({}, replace(DATA, class_names=("light", "dark")), "classes are dark, light"),
            ({"start": "nowhere"}, DATA, "no model 'nowhere'"),
        ],
    )
    def test_one_that_does_not_fit_is_refused(self, tmp_path, finished, change, data, message):
        config = replace(CONFIG, **{"start": str(finished[0]), **change})
        with pytest.raises(InputError, match=message):
            run(tmp_path / "m", config, data)


class TestResume:
    def test_killed_twice_and_resumed_equals_undisturbed(self, tmp_path, finished):
        out, losses = finished
        for step in (5, 10):  # right after a checkpoint; between two
            with pytest.raises(Killed):
                train(DATA, CONFIG, tmp_path, checkpoint_every=4, on_step=kill_at(step))
        resumed = run(tmp_path, checkpoint_every=4)
        assert list(resumed) == [9, 10, 11, 12]
        assert resumed == {step: losses[step] for step in resumed}
        assert_same(weights(tmp_path), weights(out))
        assert_same(checkpoint(tmp_path)[0], checkpoint(out)[0])
        assert checkpoint(tmp_path)[1] == NUM_STEPS

    def test_with_muon(self, tmp_path):
        config = replace(CONFIG, optimizer="muon")
        with pytest.raises(Killed):
            train(DATA, config, tmp_path / "killed", checkpoint_every=4, on_step=kill_at(6))
        losses = run(tmp_path / "whole", config)
        assert run(tmp_path / "killed", config) == {step: losses[step] for step in range(5, NUM_STEPS + 1)}
        assert_same(checkpoint(tmp_path / "killed")[0], checkpoint(tmp_path / "whole")[0])

    def test_the_interval_of_checkpoints_changes_nothing(self, tmp_path, finished):
        assert run(tmp_path) == finished[1]
        assert_same(weights(tmp_path), weights(finished[0]))

    def test_a_finished_run_is_left_as_it_is(self, finished):
        out, _ = finished
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        assert run(out) == {}
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"learning_rate": 0.5}, ["learning_rate 0.01 there, 0.5 now"]),
            ({"channels": (16,), "seed": 7}, ["channels [8] there, [16] now", "seed 0 there, 7 now"]),
        ],
    )
    def test_other_settings_are_refused_by_name(self, finished, change, named):
        with pytest.raises(InputError) as e:
            run(finished[0], replace(CONFIG, **change))
        assert all(text in str(e.value) for text in named)
        assert "epochs" not in str(e.value)

    def test_other_data_are_refused(self, finished):
        with pytest.raises(InputError, match="other images"):
            run(finished[0], data=toy(19, seed=1))

    def test_other_class_names_are_refused(self, finished):
        with pytest.raises(InputError, match="other class names"):
            run(finished[0], data=replace(DATA, class_names=("light", "dark")))

    def test_more_classes_do_not_fit_the_stored_weights(self, tmp_path, finished):
        """The run is older than the entry with its class names."""
        shutil.copytree(finished[0], tmp_path / "m")
        path = tmp_path / "m" / CHECKPOINT / "run.json"
        state = json.loads(path.read_text())
        del state["class_names"]
        path.write_text(json.dumps(state))
        with pytest.raises(InputError, match=r"safetensors cannot be used \(.*has the shape \(3, \d+\), and not \(4, "):
            run(tmp_path / "m", data=replace(DATA, class_names=("dark", "light", "bright")))

    def test_killed_while_a_checkpoint_is_written(self, tmp_path, finished, monkeypatch):
        out, losses = finished
        save_file = checkpoints.save_file

        def half(tensors, path):
            if path.name == "step-8.safetensors":
                save_file(tensors, path)
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                raise Killed
            save_file(tensors, path)

        with monkeypatch.context() as m:
            m.setattr(checkpoints, "save_file", half)
            with pytest.raises(Killed):
                run(tmp_path, checkpoint_every=4)
        resumed = run(tmp_path, checkpoint_every=4)
        assert resumed == {step: losses[step] for step in range(5, NUM_STEPS + 1)}
        assert_same(weights(tmp_path), weights(out))
        assert [path.name for path in (tmp_path / CHECKPOINT).glob("step-*")] == ["step-12.safetensors"]

    @pytest.mark.parametrize("name", ["run.json", "step-8.safetensors"])
    @pytest.mark.parametrize("damage", ["cut", "empty", "other", "missing"])
    def test_a_damaged_checkpoint_is_named(self, tmp_path, name, damage):
        with pytest.raises(Killed):
            train(DATA, CONFIG, tmp_path, checkpoint_every=8, on_step=kill_at(9))
        path = tmp_path / CHECKPOINT / name
        content = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": b"[]"}[damage])
        if (name, damage) == ("run.json", "missing"):
            assert list(run(tmp_path)) == list(range(1, NUM_STEPS + 1))
            return
        with pytest.raises(InputError, match=f"{CHECKPOINT}/{name} cannot be used"):
            run(tmp_path)

    def test_a_checkpoint_without_the_state_of_a_parameter(self, tmp_path):
        with pytest.raises(Killed):
            train(DATA, CONFIG, tmp_path, checkpoint_every=8, on_step=kill_at(9))
        tensors, step = checkpoint(tmp_path)
        kept = {key: value for key, value in tensors.items() if not key.endswith(".conv_in.bias") or key[0] != "o"}
        assert len(kept) < len(tensors)
        save_file(kept, tmp_path / CHECKPOINT / f"step-{step}.safetensors")
        with pytest.raises(InputError, match=f"step-{step}.safetensors cannot be used .*optimizer"):
            run(tmp_path)


class TestRandomness:
    def test_global_generators_are_neither_read_nor_changed(self, tmp_path, finished):
        states = {}
        for seed in (0, 1):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
            run(tmp_path / str(seed), validation=toy(4, seed=1))
            states[seed] = before, (torch.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
            assert_same(weights(tmp_path / str(seed)), weights(finished[0]))
        for (torch_0, numpy_0, random_0), (torch_1, numpy_1, random_1) in states.values():
            assert torch.equal(torch_0, torch_1)
            assert all(np.array_equal(a, b) for a, b in zip(numpy_0, numpy_1, strict=True))
            assert random_0 == random_1

    def test_seeds_make_different_weights(self, tmp_path, finished):
        run(tmp_path, replace(CONFIG, seed=1))
        assert not torch.equal(weights(tmp_path)["conv_in.weight"], weights(finished[0])["conv_in.weight"])

    def test_dropout_differs_from_step_to_step(self, monkeypatch, tmp_path):
        seeds = []
        for place in (module, denoising):
            monkeypatch.setattr(place, "seeded", lambda seed: seeds.append(seed) or seeded(seed))
        run(tmp_path)
        assert len(set(seeds)) == 1 + NUM_STEPS  # the first for the initial weights


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_weighting_by_noise_minimises_the_error_of_the_noise(tmp_path, objective):
    """This loss is that of the output times a factor that depends on t only."""
    config = replace(CONFIG, objective=objective, weighting="noise", dropout=0.0)
    losses = run(tmp_path, config, mixed_precision=False)
    network, scheduler = build_network(config, DATA)
    schedule, _ = read_scheduler(scheduler_config(scheduler))
    x, noise, t, shown = _batch(0, DATA, config, schedule)
    alpha, sigma = (a.view(-1, 1, 1, 1) for a in schedule(t))
    goal, factor = {
        "epsilon": (noise, 1),
        "v_prediction": (alpha * noise - sigma * x, alpha),
        "sample": (x, alpha / sigma),
        "flow": (noise - x, alpha),
    }[objective]
    with torch.no_grad():
        output = network.train()(alpha * x + sigma * noise, t, class_labels=shown[:, 0]).sample
    expected = (factor * (output - goal)).square().mean()
    assert losses[1] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("times", ["logit-normal", (3.0, 1.0, 0.0, 0.5)])
def test_times_of_a_density(times, tmp_path):
    """Times follow the density in the saved model, with one time of a batch in each B-th of the distribution."""
    config = replace(CONFIG, objective="flow", times=times, batch_size=64, epochs=0.1)
    _, scheduler = build_network(config, DATA)
    schedule, _ = read_scheduler(scheduler_config(scheduler))
    u = torch.cat([_batch(step, DATA, config, schedule)[2] for step in range(50)]).double() / 1000
    model = load_denoiser(train(DATA, config, tmp_path))
    density = quad(lambda v: float(model.time_density(torch.tensor(v))), 0, 1)[0]
    for edge in (0.1, 0.3, 0.5, 0.8):
        expected = quad(lambda v: float(model.time_density(torch.tensor(v))), 0, edge)[0] / density
        assert float((u < edge).double().mean()) == pytest.approx(expected, abs=1 / 64)
    if times == "logit-normal":
        edges = torch.from_numpy(expit(norm.ppf(np.arange(1, 64) / 64)))
        assert torch.bucketize(u[:64], edges).unique().numel() == 64


def test_muon_is_for_what_lies_between_the_first_and_the_last_layer():
    unet, _ = build_network(CONFIG, DATA)
    names = {id(p): name for name, p in unet.named_parameters()}
    optimizer = build_optimizer(unet, replace(CONFIG, optimizer="muon"), OUTER)
    inner, others = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert inner | others == set(names.values())
    assert {"time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"} <= inner
    assert {"conv_in.weight", "conv_out.weight", "class_embedding.weight", "mid_block.resnets.0.norm1.weight"} <= others
    assert not any(name.endswith("bias") for name in inner)


def test_the_average_is_the_recursion(tmp_path):
    """Compares with a loop in float64 over the weights of every step."""
    seen = []

    def remember(step):
        if (tmp_path / CHECKPOINT / "run.json").exists():
            tensors, at = checkpoint(tmp_path)
            assert at == step
            seen.append({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")})

    train(DATA, CONFIG, tmp_path, checkpoint_every=1, on_step=lambda p: remember(p.step - 1))
    remember(NUM_STEPS)
    initial, _ = build_network(CONFIG, DATA)
    expected = {name: p.detach().double() for name, p in initial.named_parameters()}
    assert len(seen) == NUM_STEPS
    for step, current in enumerate(seen):
        decay = min(0.9, (1 + step) / (10 + step))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * current[name].double()
    assert not torch.equal(seen[0]["conv_in.weight"], seen[-1]["conv_in.weight"])
    saved = weights(tmp_path)
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(saved[name].double(), value, rtol=1e-5, atol=1e-6)


class TestModel:
    @pytest.mark.parametrize(
        ("config", "channels"),
        [
            (CONFIG, 1),
            (replace(CONFIG, patch_size=2, channels=(8, 16), attention=True, objective="flow"), 3),
            (replace(CONFIG, channels=(7,), objective="epsilon", beta_schedule="squaredcos_cap_v2"), 1),
        ],
    )
    def test_diffusers_and_we_load_the_folder(self, tmp_path, config, channels):
        data = replace(DATA, images=DATA.images.expand(-1, channels, -1, -1).contiguous())
        run(tmp_path, replace(config, epochs=0.5), data)
        pipeline = DiffusionPipeline.from_pretrained(tmp_path)
        assert type(pipeline).__name__ == "DDPMPipeline"
        assert pipeline.unet.config.num_class_embeds == 3
        assert pipeline.unet.config.in_channels == channels * config.patch_size**2
        denoiser = load_denoiser(tmp_path, device="cpu", dtype="float32")
        assert denoiser.class_names == ("dark", "light")
        assert denoiser.image_size == 8
        side = 8 // config.patch_size
        assert denoiser.latent_shape == (channels * config.patch_size**2, side, side)
        assert denoiser.prediction_type == config.objective
        x = torch.rand(2, *denoiser.latent_shape)
        t, label = torch.tensor([500, 500]), torch.tensor([0, 1])
        with torch.inference_mode():
            expected = pipeline.unet(x, t, class_labels=label).sample
        torch.testing.assert_close(denoiser.forward(x, t, denoiser.condition(["dark", "light"])), expected)

    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_every_objective_learns_the_classes(self, tmp_path, objective):
        """Tests with the classifier on new images, independently of the training code."""
        config = TrainConfig(
            objective=objective, patch_size=2, channels=(8,), layers=1, batch_size=16, epochs=20, learning_rate=1e-2,
            warmup=5, ema=0.95,
        )  # fmt: skip
        reported = {}
        losses = list(
            run(tmp_path, config, toy(64), validation=toy(20, 1), on_validation=reported.__setitem__).values()
        )
        assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
        fresh = toy(20, seed=2)
        classifier = DiffusionClassifier.from_pretrained(tmp_path, device="cpu", dtype="float32")
        results = classifier.classify([image[0].numpy() for image in fresh.images], strategy="fixed:8")
        right = [r.label == fresh.class_names[y] for r, y in zip(results, fresh.labels.tolist(), strict=True)]
        assert np.mean(right) >= 0.95
        assert reported.keys() == {len(losses)}
        assert reported[len(losses)]["accuracy"] >= 0.95
        assert 0 < reported[len(losses)]["loss"] < 1

    def test_validation_sees_all_classes_of_sorted_images(self, tmp_path, monkeypatch):
        """An image folder lists one class after the other."""
        validation = toy(600)
        order = validation.labels.sort(stable=True).indices
        seen = []

        def score(_denoiser, jobs, *_, **__):
            for job in jobs:
                seen.append(float(job.image.mean() > 0))
                yield ScoredImage(
                    job.name, torch.zeros(2, 8), torch.ones(2).bool(), torch.zeros(8), Cost(16, 16.0, 0.0)
                )

        run(tmp_path)
        monkeypatch.setattr(module, "score", score)
        module.validate(tmp_path, TrainingImages(validation.images[order], validation.labels[order], ("a", "b")), "cpu")
        assert len(seen) == 200
        assert np.mean(seen) == 0.5

    def test_validation_is_reported_at_each_checkpoint(self, tmp_path):
        reported = []
        run(tmp_path, validation=toy(3), checkpoint_every=5, on_validation=lambda *values: reported.append(values))
        assert [step for step, _ in reported] == [5, 10, 12]
        assert all(0 <= values["accuracy"] <= 1 and values["loss"] > 0 for _, values in reported)
        assert len({values["loss"] for _, values in reported}) == 3

    def test_a_folder_named_as_a_bundled_model(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("diffusion_classifier.denoisers.load.bundled_models", lambda: {"m": Path("/nowhere")})
        reported = []
        run(Path("m"), validation=toy(2), on_validation=lambda *values: reported.append(values))
        assert len(reported) == 1


class TestRefusals:
    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        for out in (tmp_path / "file", tmp_path / "file" / "out"):
            with pytest.raises(InputError, match=f"{out} cannot be written to"):
                run(out)

    def test_a_model_of_another_origin_is_not_overwritten(self, tmp_path):
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(InputError, match="a model that no training here made"):
            run(tmp_path)

    def test_a_disk_that_fills_up(self, tmp_path, monkeypatch):
        def save(*_):
            raise SafetensorError("No space left on device")

        monkeypatch.setattr("diffusion_classifier.training.checkpoint.save_file", save)
        with pytest.raises(InputError, match=f"{tmp_path} cannot be written to .*No space left"):
            run(tmp_path)

    def test_a_gradient_that_is_not_finite(self, tmp_path, monkeypatch):
        """It would corrupt the weights, which the loss shows only a step later."""
        clip = torch.nn.utils.clip_grad_norm_

        def broken(parameters, norm):
            clip(parameters, norm)
            return torch.tensor(torch.nan)

        monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", broken)
        with pytest.raises(InputError, match="gradient nan at step 1: start again in another folder"):
            run(tmp_path)

    def test_no_steps_between_checkpoints(self, tmp_path):
        with pytest.raises(InputError, match="got 0"):
            run(tmp_path, checkpoint_every=0)

    def test_a_loss_that_is_not_finite(self, tmp_path):
        with pytest.raises(InputError, match=r"the loss is (nan|inf) and .* at step \d+: .* lower learning rate"):
            run(tmp_path, replace(CONFIG, learning_rate=1e38))
        assert not (tmp_path / "model_index.json").exists()


@pytest.mark.parametrize(("steps", "given", "at"), [(50, None, [50]), (500, None, [250, 500]), (90, 40, [40, 80, 90])])
def test_checkpoints_are_made_on_the_way(tmp_path, steps, given, at):
    module, seen = torch.nn.Linear(2, 1), []
    config = TrainConfig(learning_rate=1e-3)

    def loss(_):
        return module(torch.ones(1, 2)).square().sum()

    checkpoint = Checkpoint(tmp_path / "out" / CHECKPOINT, {"config": {}, "data": "", "class_names": []})
    callbacks = Callbacks(given, on_checkpoint=seen.append)
    fit(module, loss, config, steps, checkpoint, save=lambda _: None, callbacks=callbacks)
    assert seen == at


@pytest.mark.parametrize(
    "settings", [{"channels": (8, 8), "head": (8, 8, 8)}, {"channels": (8,), "head": (8, 8, 8, 8, 8)}]
)
def test_a_size_that_the_head_cannot_halve(settings):
    data = TrainingImages(DATA.images[:, :, :6, :6].contiguous(), DATA.labels, DATA.class_names)
    with pytest.raises(InputError, match="images of 6 pixels cannot be halved"):
        module.build_network(replace(CONFIG, **settings), data)


def test_validation_of_many_classes_is_of_few_images(tmp_path, monkeypatch):
    seen = []

    def score(_model, jobs, conditioning, _strategy, **_options):
        jobs = list(jobs)
        seen.append(len(jobs))
        errors = torch.rand(len(conditioning), 8)
        return (ScoredImage(job.name, errors, torch.ones(len(errors)).bool(), torch.zeros(8), Cost()) for job in jobs)

    class Model:
        def condition(self, classes):
            return list(classes)

    monkeypatch.setattr(module, "score", score)
    monkeypatch.setattr(module, "load_denoiser", lambda *_, **__: Model())
    for classes in (2, 10, 500):
        names = tuple(map(str, range(classes)))
        images = TrainingImages(
            torch.zeros(300, 1, 4, 4, dtype=torch.uint8), torch.zeros(300, dtype=torch.int64), names
        )
        module.validate(tmp_path, images, "cpu")
    assert seen == [200, 100, 20]
