import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.errors import InputError
from diffusion_classifier.training.class_model import train
from diffusion_classifier.training.denoising import TrainConfig
from diffusion_classifier.training.images import TrainingCaptions, TrainingImages
from diffusion_classifier.training.loop import num_steps, seeded
from diffusion_classifier.training.text_model import train_text
from diffusion_classifier.training.text_networks import (
    Latents,
    Towers,
    autoencoder_loss,
    build_tokenizer,
    build_towers,
    build_unet,
    contrastive_loss,
    default_patch_size,
    read_settings,
    tokens_of,
)

CAPTIONS = ("a dark t-shirt", "a bright t-shirt", "a dark bag", "two bright bags")


def toy(n=24, size=16):
    """Return images whose halves have the brightness in their caption."""
    levels = torch.tensor([[40, 40], [200, 40], [40, 120], [200, 200]], dtype=torch.float)
    halves = levels[torch.arange(n) % 4].repeat_interleave(size // 2, 1)[:, None, None].expand(-1, 1, size, -1)
    noise = torch.randint(-30, 31, (n, 1, size, size), generator=torch.Generator().manual_seed(0))
    return TrainingCaptions((halves + noise).to(torch.uint8), tuple(CAPTIONS[i % 4] for i in range(n)))


DATA = toy()
TOWERS = Towers(width=32, layers=1, patch_size=4, max_tokens=12, epochs=1, batch_size=8, warmup=2)
LATENTS = Latents(channels=(8, 8), latent_channels=4, epochs=1, batch_size=8, warmup=2)
CONFIG = TrainConfig(channels=(8,), layers=1, epochs=1, batch_size=6, warmup=2, label_dropout=0.3, dropout=0.1)


def run(out, data=DATA, config=CONFIG, **options):
    steps = []
    settings = {"towers": TOWERS, "latents": LATENTS, "checkpoint_every": 2}
    train_text(data, config, out, on_step=lambda p: steps.append((p.stage, p.step, p.loss)), **settings | options)
    return steps


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    return out, run(out)


def all_weights(out):
    return {
        f"{path.parent.name}.{name}": tensor
        for path in out.glob("*/*.safetensors")
        if path.parent.name != "checkpoint"
        for name, tensor in load_file(path).items()
    }


class TestPipeline:
    def test_diffusers_and_transformers_load_it(self, finished):
        out, _ = finished
        pipeline = StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
        clip = CLIPModel.from_pretrained(out / "contrastive")
        ours = pipeline.text_encoder.state_dict()
        theirs = clip.text_model.state_dict()
        assert {name.removeprefix("text_model."): 0 for name in ours}.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name.removeprefix("text_model.")]) for name in ours)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("a dark bag", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)

    def test_it_is_read_by_its_captions(self, finished):
        classifier = DiffusionClassifier.from_pretrained(finished[0], device="cpu", dtype="float32")
        image = DATA.images[0].expand(3, -1, -1)
        (result,) = classifier.classify([image], ["a dark bag", "two bright bags"], strategy="fixed:2")
        assert sum(result.scores.values()) == pytest.approx(1)
        with pytest.raises(InputError, match=r"'a giraffe' has the word 'giraffe', which this model was not trained"):
            classifier.classify([image], ["a dark bag", "a giraffe"])
        with pytest.raises(InputError, match=r"has the word 'bagg'.*; near it are bag"):
            classifier.classify([image], ["a dark bagg", "a bag"])
        assert set(classifier.denoiser.words) == {"a", "dark", "bright", "t", "shirt", "bag", "two", "bags"}

    def test_latents_have_a_variance_of_one(self, finished):
        denoiser = load_denoiser(finished[0], device="cpu", dtype="float32")
        latents = denoiser.encode(DATA.images.expand(-1, 3, -1, -1) / 127.5 - 1)
        assert latents.shape == (24, 4, 8, 8)
        assert latents.std() == pytest.approx(1, abs=0.01)

    @pytest.mark.slow
    def test_all_is_learned(self, tmp_path):
        """The model learns which words describe which half."""
        config = TrainConfig(channels=(16, 16), layers=1, epochs=60, batch_size=24, warmup=10, learning_rate=4e-3)
        towers = Towers(width=32, layers=1, patch_size=4, max_tokens=12, epochs=40, batch_size=24, warmup=10)
        latents = Latents(channels=(16, 16), latent_channels=4, epochs=40, batch_size=24, warmup=10, learning_rate=4e-3)
        run(tmp_path, toy(96), config, towers=towers, latents=latents, checkpoint_every=1000, mixed_precision=False)
        classifier = DiffusionClassifier.from_pretrained(tmp_path, device="cpu", dtype="float32")
        images = [image.expand(3, -1, -1) for image in DATA.images]
        labels = [r.label for r in classifier.classify(images, CAPTIONS, strategy="fixed:8")]
        assert sum(label == truth for label, truth in zip(labels, DATA.captions, strict=True)) >= 22  # by chance 6


@pytest.mark.parametrize(("stage", "step"), [("contrastive", 2), ("autoencoder", 3), ("diffusion", 3)])
def test_a_killed_run_goes_on_to_the_same_bits(finished, tmp_path, stage, step):
    class Killed(BaseException):
        pass

    def kill(p):
        if (p.stage, p.step) == (stage, step):
            raise Killed

    with pytest.raises(Killed):
        train_text(DATA, CONFIG, tmp_path, towers=TOWERS, latents=LATENTS, checkpoint_every=2, on_step=kill)
    went_on = run(tmp_path)
    undisturbed = {s[:2]: s[2] for s in finished[1]}
    assert all(loss == undisturbed[stage, step] for stage, step, loss in went_on if stage != "latents")
    assert [s for s in went_on if s[0] == stage]
    mine, theirs = all_weights(tmp_path), all_weights(finished[0])
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert json.loads((tmp_path / "vae/config.json").read_text()) == json.loads(
        (finished[0] / "vae/config.json").read_text()
    )


@pytest.mark.parametrize(("attention", "where"), [(False, {"mid"}), (True, {"mid", "down.1", "up.0"})])
def test_where_prompts_enter(attention, where):
    unet = build_unet(TrainConfig(channels=(8, 16), layers=1, attention=attention), 4, 8, 32)
    entrances = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    assert {name.replace("_block", "").replace("s.", ".").partition(".attention")[0] for name in entrances} == where


def test_plain_attention_has_the_gradient_of_fused_attention():
    """Fused attention is slow on a CPU, so training uses plain attention there."""
    generator = torch.Generator().manual_seed(0)
    with seeded(0):
        unet = build_unet(TrainConfig(channels=(16,), layers=1, attention=True), 4, 8, 32)
        clip = build_towers(TOWERS, build_tokenizer(CAPTIONS, 1024, 12), 16)
    x, prompts = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 12, 32, generator=generator)
    ids, pixels = torch.tensor([[0, *[7] * 10, 1]] * 3), torch.randn(3, 3, 16, 16, generator=generator)

    def gradients(module, loss):
        module.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])

    found = []
    for plain in (False, True):
        if plain:
            unet.set_attn_processor(AttnProcessor())
            clip.set_attn_implementation("eager")
        found.append(gradients(unet, unet(x, 5, encoder_hidden_states=prompts).sample.square().mean()))
        logits = clip(input_ids=ids, pixel_values=pixels).logits_per_image
        found.append(gradients(clip, contrastive_loss(logits, torch.arange(3)[:, None])))
    for fused, plain in zip(found[:2], found[2:], strict=True):
        assert fused.abs().max() > 0
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_a_width_divides_among_heads():
    with pytest.raises(InputError, match="multiple of 32, the width of a head; got 100"):
        Towers(width=100)


def test_towers_and_autoencoder_of_another_run(finished, tmp_path):
    steps = run(tmp_path, towers=finished[0] / "contrastive", latents=finished[0] / "vae")
    assert {stage for stage, *_ in steps} == {"latents", "diffusion"}
    mine, theirs = all_weights(tmp_path), all_weights(finished[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_does_not_go_on_with_another_text_encoder_or_autoencoder(finished, tmp_path):
    own, other = finished[0], tmp_path / "other"
    run(other, config=replace(CONFIG, seed=1))
    for part, towers, latents in (("text_encoder", other, own), ("autoencoder", own, other)):
        out = tmp_path / part
        run(out, towers=own / "contrastive", latents=own / "vae")
        with pytest.raises(InputError, match=f"other settings \\({part} "):
            run(out, towers=towers / "contrastive", latents=latents / "vae")


class TestStart:
    @staticmethod
    def on(out, model, **changes):
        options = {"start": str(model), "learning_rate": 1e-12, "weight_decay": 0.0, "ema": 0.0} | changes
        config = replace(CONFIG, **options)
        return run(out, config=config, towers=model / "contrastive", latents=model / "vae")

    def test_training_starts_from_the_weights_of_another_model(self, finished, tmp_path):
        self.on(tmp_path, finished[0], seed=1)
        mine, theirs = all_weights(tmp_path), all_weights(finished[0])
        assert any(name.startswith("unet.") for name in mine)
        assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)

    def test_one_of_another_shape_or_of_classes_is_refused(self, finished, tmp_path):
        with pytest.raises(InputError, match="another shape than patch size 1, channels"):
            self.on(tmp_path, finished[0], layers=2)
        with pytest.raises(InputError, match=r"its classes are .*, and those of the data texts"):
            self.on(tmp_path / "f", finished[0], start="fashion")

    def test_without_the_networks_that_it_was_trained_with(self, finished, tmp_path):
        with pytest.raises(InputError, match="name the folders of its contrastive model and its autoencoder"):
            run(tmp_path, config=replace(CONFIG, start=str(finished[0])))


class TestLosses:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.integers(0, 100))
    def test_contrastive(self, captions, seed):
        b = len(captions)
        logits = torch.randn(b, b, generator=torch.Generator().manual_seed(seed)) * 3
        tokens = torch.tensor([[c, 9] for c in captions])
        total = 0.0
        for i in range(b):
            same = [j for j in range(b) if captions[j] == captions[i]]
            for row in (logits[i], logits[:, i]):  # captions of the image, and images of the caption
                total -= sum(float(row[j]) - math.log(float(row.exp().sum())) for j in same) / len(same)
        assert float(contrastive_loss(logits, tokens)) == pytest.approx(total / b / 2, rel=1e-4, abs=1e-5)

    def test_contrastive_is_that_of_clip_for_different_captions(self, finished):
        clip = CLIPModel.from_pretrained(finished[0] / "contrastive")
        tokens = tokens_of(CLIPTokenizer.from_pretrained(finished[0] / "contrastive"), CAPTIONS)
        output = clip(input_ids=tokens, pixel_values=torch.rand(4, 3, 16, 16), return_loss=True)
        assert torch.allclose(contrastive_loss(output.logits_per_image, tokens), output.loss)

    def test_divergence_is_that_of_diffusers(self, finished):
        vae = StableDiffusionPipeline.from_pretrained(finished[0], safety_checker=None).vae
        x = torch.rand(3, 3, 16, 16) * 2 - 1
        noise = torch.zeros(3, 4, 8, 8)
        latent = vae.encode(x).latent_dist
        mse = (vae.decode(latent.mean).sample - x).square().mean()
        expected = mse + 0.1 * latent.kl().mean() / noise[0].numel()
        assert torch.allclose(autoencoder_loss(vae, x, noise, 0.1), expected, rtol=1e-5)


class TestTokenizer:
    def test_words_are_tokens(self):
        tokenizer = build_tokenizer(CAPTIONS, 1024, 12)
        assert tokenizer.tokenize("Two bright  BAGS") == ["two</w>", "bright</w>", "bags</w>"]
        row = tokens_of(tokenizer, ["a bag", ""])
        assert row.shape == (2, 12)
        start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        assert row[1].tolist() == [start] + [end] * 11
        assert row[0, 3:].tolist() == [end] * 9

    def test_it_depends_on_the_captions_alone(self):
        files = {build_tokenizer(CAPTIONS, 1024, 12).backend_tokenizer.to_str() for _ in range(10)}
        assert len(files) == 1

    def test_a_caption_that_is_too_long(self):
        with pytest.raises(InputError, match="'a b c d' has 6 tokens; max_tokens is 5"):
            tokens_of(build_tokenizer(("a b", "a b c d"), 1024, 5), ("a b", "a b c d"))


class TestRefusals:
    @pytest.mark.parametrize("setting", [{"flip": True}, {"patch_size": 2}, {"head": (8,)}, {"joint": 0.1}])
    def test_settings_that_are_not_for_captions(self, tmp_path, setting):
        with pytest.raises(InputError, match="not for models that read captions"):
            run(tmp_path, config=TrainConfig(**setting))

    def test_sizes(self, tmp_path):
        with pytest.raises(InputError, match="16 pixels cannot be cut into squares of 5"):
            run(tmp_path, towers=Towers(patch_size=5))
        with pytest.raises(InputError, match="images of 16 pixels cannot be halved 5 times"):
            run(tmp_path, latents=Latents(channels=(8,) * 6))
        with pytest.raises(InputError, match="latents of 8 pixels cannot be halved 4 times"):
            run(tmp_path / "u", config=TrainConfig(channels=(8,) * 5))
        assert not (tmp_path / "u").exists()  # nothing was trained before it was told

    def test_an_unknown_optimizer(self, tmp_path):
        with pytest.raises(InputError, match="optimizer 'sgd' is not one of adamw, muon"):
            run(tmp_path, towers=Towers(**{**vars(TOWERS), "optimizer": "sgd"}))

    def test_another_run(self, finished, tmp_path):
        out = tmp_path / "m"
        shutil.copytree(finished[0], out)
        with pytest.raises(InputError, match="other images"):
            run(out, toy(20))
        with pytest.raises(InputError, match=r"other settings \(width 32 there, 64 now\)"):
            run(out, towers=Towers(**{**vars(TOWERS), "width": 64}))
        shutil.rmtree(out / "checkpoint")
        with pytest.raises(InputError, match="holds a model that no training here made"):
            run(out)

    def test_what_is_refused_leaves_the_model_as_it_was(self, finished, tmp_path):
        out = tmp_path / "m"
        shutil.copytree(finished[0], out)
        before = (out / "contrastive/tokenizer.json").read_text()
        with pytest.raises(InputError, match="other images"):
            run(out, replace(DATA, captions=tuple(f"a new {c}" for c in DATA.captions)))
        assert (out / "contrastive/tokenizer.json").read_text() == before

    def test_a_caption_that_given_towers_cannot_read(self, finished, tmp_path):
        data = replace(DATA, captions=("dark " * 20, *DATA.captions[1:]))
        with pytest.raises(InputError, match=r"the caption 'dark .* has \d+ tokens; max_tokens is 12"):
            run(tmp_path, data, towers=finished[0] / "contrastive", latents=finished[0] / "vae")

    @pytest.mark.parametrize("part", ["towers", "latents"])
    def test_no_such_network(self, tmp_path, part):
        (tmp_path / "p").mkdir()
        (tmp_path / "p" / "config.json").write_text("{}")
        with pytest.raises(InputError, match="has its weights not in"):
            run(tmp_path / "m", **{part: tmp_path / "p"})
        (tmp_path / "p" / "model.safetensors").write_text("none")
        (tmp_path / "p" / "diffusion_pytorch_model.safetensors").write_text("none")
        with pytest.raises(InputError, match=r"cannot be used as an? (contrastive model|autoencoder)"):
            run(tmp_path / "m", **{part: tmp_path / "p"})


class TestSettings:
    def test_read(self):
        assert read_settings(Towers, "") == Towers()
        assert read_settings(Towers, "width=64,epochs=2.5") == Towers(width=64, epochs=2.5)
        assert read_settings(Latents, "channels=8/16,latent_channels=4") == Latents(channels=(8, 16), latent_channels=4)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("depth=3", "'depth' is not one of width, layers"),
            ("width=wide", "width='wide' is not a value as 128 is"),
            ("width", "width='' is not a value as 128 is"),
            ("width=-1", "width must be at least 1 and finite; got -1"),
            ("patch_size=0", "patch_size must be at least 1 and finite; got 0"),
            ("learning_rate=nan", "learning_rate must be at least 0 and finite; got nan"),
        ],
    )
    def test_unfit(self, text, sentence):
        with pytest.raises(InputError, match=sentence):
            read_settings(Towers, text)


def test_few_images_teach_all_stages():
    assert [
        num_steps(recipe, 200, usual) for recipe, usual in ((Towers(), 10), (Latents(), 1), (TrainConfig(), 10))
    ] == [500] * 3
    assert num_steps(Latents(), 64_000, 1) == 1000
    assert num_steps(Towers(), 256_000) == 10_000
    assert (read_settings(Towers, ""), read_settings(Latents, "")) == (Towers(), Latents())
    assert read_settings(Latents, "epochs=0.4").epochs == 0.4
    assert read_settings(Towers, "patch_size=8,epochs=3") == Towers(patch_size=8, epochs=3.0)


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (32, 4), (56, 7), (64, 8), (128, 16), (13, 1)])
def test_default_patch_size(size, patch):
    assert default_patch_size(size) == patch


def test_models_of_captions_and_of_classes_do_not_take_each_others_place(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "text")
    labelled = TrainingImages(DATA.images, torch.arange(24) % 4, CAPTIONS)
    with pytest.raises(InputError, match="holds a model that no training here made"):
        train(labelled, replace(CONFIG, epochs=0.1), out)
    train(labelled, replace(CONFIG, epochs=0.1), tmp_path / "classes")
    with pytest.raises(InputError, match="holds a model that no training here made"):
        run(tmp_path / "classes")
    before = all_weights(out)
    assert {stage for stage, *_ in run(out)} == {"latents"}  # encoded anew, and nothing is left to learn
    assert all(torch.equal(tensor, before[name]) for name, tensor in all_weights(out).items())
