import csv
import io
import json
import sys
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from commands import error, save
from gaussians import SCHEDULES
from PIL import Image

from diffusion_classifier import load_denoiser
from diffusion_classifier.analysis import inversion
from diffusion_classifier.analysis.inversion import Captioner, reconstruct, refined
from diffusion_classifier.data.fashion import load_sample
from diffusion_classifier.data.images import preprocess
from diffusion_classifier.denoisers.families.gaussian import Gaussian
from diffusion_classifier.denoisers.sampling import ddim, invert
from diffusion_classifier.errors import InputError

FAMILIES = (
    "class-unet", "late-unet", "dit", "sd-epsilon", "sdxl", "sd3", "flux-dev", "pixart", "sana", "if", "playground",
)  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULES)
def test_inversion_of_a_gaussian_goes_where_its_flow_takes_it(kind):
    """z in x_t = α·m + √(α²s² + σ²)·z stays the same along the way; both errors go as the length of a step."""
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.randn(2, 3, 3, 4, 4, generator=generator)
    variances = variances.abs() + 0.1
    model = Gaussian(means, variances, SCHEDULES[kind], "flow" if kind == "flow" else "v_prediction")
    schedule, conditioning = model.schedule, model.condition([0, 1, 2])[torch.arange(3)]
    x = means + variances.sqrt() * torch.randn(3, 3, 4, 4, generator=generator)
    u = torch.tensor([1 - 1.5 / schedule.num_timesteps, 0.0], dtype=torch.float64)
    (alpha, alpha_0), (sigma, sigma_0) = schedule(schedule.timesteps(u))
    z = (x - alpha_0 * means) / (alpha_0**2 * variances + sigma_0**2).sqrt()
    exact = alpha * means + (alpha**2 * variances + sigma**2).sqrt() * z
    there, back = [], []
    for steps in (50, 200):
        noise = invert(model, conditioning, x, steps=steps)
        there.append(float((noise - exact).square().mean().sqrt()))
        back.append(float((ddim(model, conditioning, noise, steps=steps) - x).square().mean().sqrt()))
    assert there[0] < 0.3
    for far in (there, back):
        assert 2.5 < far[0] / far[1] < 6


def test_the_bundled_model_returns_an_image_and_more_steps_lose_less():
    model = load_denoiser("fashion", device="cpu", dtype="float32")
    sample = load_sample()[3]
    lost = [reconstruct(model, sample.image, [sample.label], steps=steps)[1][0].rmse for steps in (10, 40)]
    assert lost[1] < 0.05
    assert lost[0] / lost[1] > 2


@pytest.mark.parametrize(
    "name",
    ["class-unet", "late-unet", "dit", "sd-epsilon", "sdxl", "sd3", "flux-dev", "pixart", "sana", "if", "playground"],
)
def test_families(name, model_folder):
    model = load_denoiser(model_folder(name), device="cpu", dtype="float32")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    prompts = ["a cat", "a dog"] if model.class_names is None else list(model.class_names[:2])
    original, found = reconstruct(model, image, prompts, steps=2)
    assert original.size == (model.image_size, model.image_size)
    assert [r.prompt for r in found] == ([] if model.in_pixels else [None]) + prompts
    for r in found:
        assert r.image.size == original.size
        assert 0 <= r.rmse <= 1
        assert -1 <= r.ssim <= 1


def test_distances_are_of_the_images_that_are_shown(model_folder):
    model = load_denoiser(model_folder("dit"), device="cpu", dtype="float32")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    original, (alone, _) = reconstruct(model, image, [model.class_names[0]], steps=1)
    pixels = preprocess(image, model.image_size, crop=model.crop)
    np.testing.assert_array_equal(np.asarray(original), ((pixels + 1) * 127.5).round().byte().permute(1, 2, 0))
    a, b = (np.asarray(i, float) / 255 for i in (original, alone.image))
    assert alone.rmse == pytest.approx(np.sqrt(((a - b) ** 2).mean()), abs=2e-3)
    vae = model.modules()[1]
    with torch.no_grad():
        mean = vae.encode(pixels[None]).latent_dist.mean
        expected = vae.decode(mean).sample.clamp(-1, 1)
    assert alone.rmse == pytest.approx(float(((expected - pixels) / 2).square().mean().sqrt()), rel=1e-3)


class TestPerceptual:
    """By a network that stands for that of the library lpips, which wants more pixels than small images have."""

    @pytest.fixture(autouse=True)
    def _fresh(self):
        inversion._perceptual.cache_clear()
        yield
        inversion._perceptual.cache_clear()

    @staticmethod
    def install(monkeypatch, network):
        monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=network))

    def test_small_images_are_enlarged_and_the_network_is_built_once(self, monkeypatch):
        shapes, built = [], []

        def network(**_):
            built.append(1)
            return lambda a, b: shapes.extend([tuple(a.shape), tuple(b.shape)]) or (a - b).abs().mean()

        self.install(monkeypatch, network)
        assert inversion._lpips(torch.zeros(1, 28, 28), torch.full((1, 28, 28), 0.5)) == pytest.approx(1.0)
        inversion._lpips(torch.zeros(3, 80, 80), torch.zeros(3, 80, 80))
        assert (shapes, built) == ([(1, 3, 64, 64)] * 2 + [(1, 3, 80, 80)] * 2, [1])

    def test_without_weights_there_is_no_distance(self, monkeypatch):
        def network(**_):
            raise URLError("no network")

        self.install(monkeypatch, network)
        assert inversion._lpips(torch.zeros(1, 28, 28), torch.zeros(1, 28, 28)) is None


@pytest.mark.parametrize(
    ("caption", "name", "noun", "expected"),
    [
        ("a cat on a sofa", "Birman", "cat", "a Birman cat on a sofa"),
        ("a cat on a sofa", "Birman cat", "cat", "a Birman cat on a sofa"),
        ("A Cat, and a cat", "Bengal", "cat", "A Bengal Cat, and a cat"),
        ("a category of dog", "Beagle", "dog", "a category of Beagle dog"),
        ("a cat", "cat", "cat", "a cat"),
    ],
)
def test_a_name_goes_before_the_noun(caption, name, noun, expected):
    assert refined(caption, name, noun) == expected


def test_a_caption_without_the_noun():
    with pytest.raises(InputError, match="'a sofa' does not have the word 'cat'"):
        refined("a sofa", "Birman cat", "cat")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A tiny BLIP with random weights."""
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "sofa", "on", "the"]
    tokens = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    config = BlipConfig(
        text_config={
            **size,
            **special,
            "vocab_size": len(words),
            "encoder_hidden_size": 16,
            "max_position_embeddings": 40,
        },
        vision_config={**size, "image_size": 16, "patch_size": 8},
    )
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokens).save_pretrained(folder)
    return folder


def test_a_captioner_writes_what_the_model_generates(blip):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    caption = Captioner(blip, "cpu")(image)
    assert caption
    assert set(caption.split()) <= {"a", "cat", "dog", "sofa", "on", "the", "[UNK]", "[MASK]"}


class TestCommand:
    @pytest.fixture
    def photo(self, tmp_path):
        save(tmp_path / "photo.png", 128)
        return tmp_path / "photo.png"

    def test_a_table_lines_and_a_figure(self, call, model, photo, tmp_path):
        options = ("--model", model, "--steps", 3, "--device", "cpu")
        code, out, err = call("invert", photo, *options, "--figure", tmp_path / "f.png")
        assert (code, all(name in out for name in ("dark", "grey", "light"))) == (0, True)
        assert "drawn to" in err
        assert Image.open(tmp_path / "f.png").width > 500
        code, out, _ = call("invert", photo, *options, "--labels", "dark,light", "--format", "jsonl")
        rows = [json.loads(line) for line in out.splitlines()]
        assert [row["prompt"] for row in rows] == ["dark", "light"]
        code, out, _ = call("invert", photo, *options, "--prompt", "grey", "--format", "csv")
        (row,) = csv.DictReader(io.StringIO(out))
        assert (row["prompt"], row["lpips"], 0 < float(row["rmse"]) < 1) == ("grey", "", True)

    def test_captions(self, call, blip, model_folder, photo, monkeypatch):
        monkeypatch.setattr(Captioner, "__call__", lambda *_: "a cat on a sofa")
        options = ("--model", model_folder("sd-epsilon"), "--steps", 1, "--device", "cpu", "--format", "jsonl")
        names = ("--labels", "cat,dog", "--template", "a {}", "--captioner", blip, "--refine", "Birman cat")
        code, out, err = call("invert", photo, *options, *names)
        assert code == 0
        prompts = [json.loads(line)["prompt"] for line in out.splitlines()]
        assert prompts == [None, "a cat", "a dog", "a cat on a sofa", "a Birman cat on a sofa"]
        assert "says: a cat on a sofa" in err

    def test_bad_input(self, call, model, model_folder, photo, tmp_path):
        for arguments, message in (
            ((photo, "--model", model, "--prompt", "pink"), "'pink'"),
            ((tmp_path / "none.png", "--model", model), "none.png"),
            ((photo, "--model", model_folder("sd-epsilon")), "say under which prompts"),
            ((photo, "--model", model, "--refine", "x"), "--refine is of a caption"),
            ((photo, "--model", model, "--captioner", "x", "--noun", "cat"), "--noun is where --refine puts the name"),
            ((photo, "--model", model, "--captioner", tmp_path), "cannot be loaded"),
        ):
            code, _, err = call("invert", *arguments, "--device", "cpu")
            assert (code, message in error(err)) == (2, True), err


def test_prompts_are_followed_a_few_at_a_time(model_folder, monkeypatch):
    model = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
    image = Image.fromarray(np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3))
    prompts = list(model.class_names[:3])
    together = reconstruct(model, image, prompts, steps=3)[1]
    monkeypatch.setattr(inversion, "BATCH", 2)
    apart = reconstruct(model, image, prompts, steps=3)[1]
    assert [way.prompt for way in apart] == [way.prompt for way in together] == prompts
    assert [way.rmse for way in apart] == pytest.approx([way.rmse for way in together], rel=1e-4)
