import json
from dataclasses import replace

import pytest
import torch
from commands import choices, error
from diffusers import DDPMPipeline, DiTPipeline

from diffusion_classifier import load_denoiser
from diffusion_classifier.baselines.encoders import features, middle
from diffusion_classifier.baselines.features import HEADS, Features
from diffusion_classifier.baselines.load import kind_of
from diffusion_classifier.diffusion.draws import Draws
from diffusion_classifier.errors import InputError
from diffusion_classifier.training.images import TrainingImages
from diffusion_classifier.training.supervised import SupervisedConfig, train_features

NAMES = ("dark", "grey", "light")
CONFIG = SupervisedConfig(
    architecture="linear", augment="flips", epochs=20, batch_size=8, warmup=2, ema=0.9, learning_rate=0.05,
    optimizer="adamw",
)  # fmt: skip


def load(folder):
    return load_denoiser(folder, device="cpu", dtype="float32")


def toy(n, size=16, seed=0):
    """Three classes of brightness, in turn."""
    labels = torch.arange(n) % 3
    noise = torch.randint(-30, 31, (n, 1, size, size), generator=torch.Generator().manual_seed(seed))
    return TrainingImages((40 + 80 * labels.view(-1, 1, 1, 1) + noise).to(torch.uint8), labels, NAMES)


def latents_and_noise(model):
    x = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode(x)
    return latents, torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_features_are_those_of_the_middle_block(model_folder):
    """Computed by the parts of diffusers' own network."""
    model, unet = load(model_folder("class-unet")), DDPMPipeline.from_pretrained(model_folder("class-unet")).unet
    latents, noise = latents_and_noise(model)
    alpha, sigma = model.schedule(torch.tensor([100]))
    noisy = alpha * latents + sigma * noise
    emb = unet.time_embedding(unet.time_proj(torch.tensor([100, 100]))) + unet.class_embedding(torch.tensor([3, 3]))
    hidden = unet.conv_in(noisy)
    for block in unet.down_blocks:
        hidden, _ = block(hidden, emb)
    torch.testing.assert_close(features(model, latents, noise), unet.mid_block(hidden, emb), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_features_of_a_transformer_are_a_map(model_folder):
    model = load(model_folder("dit"))
    transformer = DiTPipeline.from_pretrained(model_folder("dit")).transformer
    latents, noise = latents_and_noise(model)
    found = features(model, latents, noise)
    alpha, sigma = model.schedule(torch.tensor([100]))
    tokens = transformer.pos_embed(alpha * latents + sigma * noise)
    null = torch.full((2,), model.null_class)
    tokens = transformer.eval().transformer_blocks[0](tokens, timestep=torch.tensor([100, 100]), class_labels=null)
    edge = found.shape[-1]
    assert found.shape == (2, tokens.shape[2], edge, edge)
    for y in range(edge):
        torch.testing.assert_close(found[:, :, y], tokens[:, y * edge : (y + 1) * edge].mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["late-unet", "late-dit", "sd-epsilon", "sdxl", "sd3", "flux-dev", "pixart"])
def test_other_families_have_a_middle(name, model_folder):
    model = load(model_folder(name))
    found = features(model, *latents_and_noise(model))
    assert found.ndim == 4
    assert found.shape[2] == found.shape[3]
    assert not middle(model)._forward_hooks


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_a_head_learns_and_is_loaded(head, model_folder, tmp_path):
    told, model = [], load(model_folder("class-unet"))
    config = SupervisedConfig(**{**vars(CONFIG), "architecture": head})
    folder = model_folder("class-unet")
    out = train_features(
        toy(24), model, str(folder), config, tmp_path / "head", validation=toy(12, seed=1),
        on_validation=lambda _, values: told.append(values["accuracy"]),
    )  # fmt: skip
    assert kind_of(out) == "features"
    loaded = Features.from_pretrained(out, device="cpu", dtype="float32")
    assert loaded.class_names == NAMES
    fresh = toy(12, seed=1)
    latents = model.encode(fresh.images.float().expand(-1, 3, -1, -1) / 127.5 - 1)
    noise = Draws().noise(0, 0, model.latent_shape).expand(latents.shape)
    with torch.no_grad():
        logits = loaded.head(features(model, latents, noise))
    assert float((logits.argmax(1) == fresh.labels).float().mean()) == told[-1] >= 11 / 12


def test_a_head_meets_its_encoder_in_the_dtype_of_its_training(model_folder, tmp_path):
    folder = model_folder("class-unet")
    model = load_denoiser(folder, device="cpu", dtype="bfloat16")
    train_features(toy(6), model, str(folder), replace(CONFIG, epochs=1), tmp_path)
    assert Features.from_pretrained(tmp_path, device="cpu").dtype == torch.bfloat16
    with pytest.raises(InputError, match="gives in bfloat16: choose that dtype, or auto"):
        Features.from_pretrained(tmp_path, device="cpu", dtype="float32")


class TestCommand:
    def test_trained_and_evaluated(self, call, model_folder, photos, tmp_path):
        few = ("--head", "linear", "--learning-rate", 0.05, "--warmup", 2, "--epochs", 60, "--device", "cpu")
        where = ("--model", model_folder("class-unet"), "--out", tmp_path / "head")
        code, out, err = call("baseline", "features", photos, *where, *few)
        assert (code, out) == (0, "")
        assert "27 training and 3 validation images of 3 classes" in err
        code, out, _ = call("evaluate", photos, "--model", tmp_path / "head", "--out", tmp_path / "run")
        assert (code, "30 of 30" in out) == (0, True)
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["accuracy"][0] > 0.8
        about = json.loads((tmp_path / "head" / "features.json").read_text())
        (tmp_path / "head" / "features.json").write_text(json.dumps(about | {"fingerprint": "0"}))
        code, _, err = call("evaluate", photos, "--model", tmp_path / "head", "--out", tmp_path / "other")
        assert (code, "is another model than that for which" in error(err)) == (2, True)
        (tmp_path / "head" / "head.safetensors").write_bytes(b"")
        code, _, err = call("evaluate", photos, "--model", tmp_path / "head", "--out", tmp_path / "other")
        assert (code, "cannot be used as a head on features" in error(err)) == (2, True)

    def test_bad_input(self, call, model_folder, photos, tmp_path):
        where = ("--model", model_folder("class-unet"), "--out", tmp_path / "head")
        for head in ("deep", "resnet-18"):
            code, _, err = call("baseline", "features", photos, *where, "--head", head)
            assert (code, choices(err)) == (2, ("--head", list(HEADS)))
        code, _, err = call("baseline", "features", photos, *where, "--epochs", 0)
        assert code == 2
        assert "epochs must be above 0" in error(err.splitlines()[-1])


def test_a_closed_form_has_none():
    from gaussians import gaussian

    with pytest.raises(InputError, match="has no middle block"):
        middle(gaussian(3))
