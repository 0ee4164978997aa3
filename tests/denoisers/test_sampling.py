import inspect
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, StableDiffusionImg2ImgPipeline
from gaussians import SCHEDULES, gaussian

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.denoisers.families.gaussian import Gaussian
from diffusion_classifier.denoisers.sampling import BATCH, ddim, draw_images, finite_noise
from diffusion_classifier.diffusion.schedules import EDM
from diffusion_classifier.errors import InputError


def load(folder):
    return load_denoiser(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("kind", SCHEDULES)
def test_samples_of_a_gaussian_go_where_its_flow_takes_them(kind):
    """z in x_t = α·m + √(α²s² + σ²)·z is constant along the flow. The error is proportional to the step length."""
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.randn(2, 3, 3, 4, 4, generator=generator)
    variances = variances.abs() + 0.1
    model = Gaussian(means, variances, SCHEDULES[kind], "flow" if kind == "flow" else "v_prediction")
    noise, rows = torch.randn(3, 3, 4, 4, generator=generator), torch.arange(3)
    schedule, far = model.schedule, []
    u = torch.tensor([1 - 1.5 / schedule.num_timesteps, 0.0], dtype=torch.float64)
    (alpha, alpha_0), (sigma, sigma_0) = schedule(schedule.timesteps(u))
    z = (noise - alpha * means) / (alpha**2 * variances + sigma**2).sqrt()
    exact = alpha_0 * means + (alpha_0**2 * variances + sigma_0**2).sqrt() * z
    for steps in (50, 200):
        drawn = ddim(model, model.condition([0, 1, 2])[rows], noise, steps=steps)
        far.append(float((drawn - exact).square().mean().sqrt()))
    assert far[0] < 0.15
    assert 2.5 < far[0] / far[1] < 6


@pytest.mark.parametrize("name", ["class-unet", "late-unet", "dit"])
def test_decoding_undoes_encoding(name, model_folder):
    model = load(model_folder(name))
    images = torch.rand(2, 1, model.image_size, model.image_size).expand(-1, 3, -1, -1) * 2 - 1
    latents = model.encode(images)
    decoded = model.decode(latents)
    if model.in_pixels:
        torch.testing.assert_close(decoded, images[:, : decoded.shape[1]], rtol=0, atol=1e-5)
    else:
        vae = model.modules()[1]
        with torch.no_grad():
            expected = vae.decode(latents / vae.config.scaling_factor).sample
        torch.testing.assert_close(decoded, expected)


@pytest.mark.parametrize("name", ["class-unet", "dit", "sd-epsilon", "sdxl"])
def test_an_image_depends_on_its_seed_and_class_alone(name, model_folder):
    model = load(model_folder(name))
    a, b = (0, 2) if name in ("class-unet", "dit") else ("a cat", "a dog")
    together = [np.asarray(image, float) for image in draw_images(model, [a, b, a, a], [1, 1, 2, 1], steps=2)]
    assert together[0].shape[:2] == (model.image_size,) * 2
    (alone,) = draw_images(model, [b], [1], steps=2)
    assert np.abs(together[1] - np.asarray(alone, float)).max() <= 1
    assert np.array_equal(together[0], together[3])
    assert np.abs(together[0] - together[1]).max() > 1
    assert np.abs(together[0] - together[2]).max() > 1


def test_another_size(model_folder):
    model = load_denoiser(model_folder("sd-epsilon"), device="cpu", dtype="float32", image_size=48)
    assert next(draw_images(model, ["a cat"], [0], steps=1)).size == (48, 48)


def test_text_encoders_are_where_the_network_is(model_folder, monkeypatch):
    """Otherwise sampling fails if the network is not on the CPU."""
    model, seen = load(model_folder("sd-epsilon")), []
    there = type(model).encoders_at_hand

    @contextmanager
    def noted(self):
        with there(self):
            seen.append("in")
            yield
            seen.append("out")

    encode = model.pipeline.encode_prompt
    monkeypatch.setattr(type(model), "encoders_at_hand", noted)
    monkeypatch.setattr(model.pipeline, "encode_prompt", lambda *a, **k: seen.append("encode") or encode(*a, **k))
    list(draw_images(model, ["a cat"], [0], steps=1))
    assert seen[-3:] == ["in", "encode", "out"]


@pytest.mark.parametrize("name", ["sd-epsilon", "sdxl", "sd3", "flux-dev", "lumina2", "z-image"])
def test_only_the_network_computes_in_its_dtype(name, model_folder):
    """Autoencoders and language models overflow in float16."""
    model, seen = load_denoiser(model_folder(name), device="cpu", dtype="bfloat16"), {}

    def note(part):
        def hook(module, _, output):
            if output.is_floating_point():
                seen.setdefault(part, set()).add((next(module.parameters()).dtype, output.dtype))

        return hook

    parts = {n: m for n, m in model.pipeline.components.items() if isinstance(m, torch.nn.Module)}
    for part, module in parts.items():
        for layer in module.modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                layer.register_forward_hook(note(part))
    next(draw_images(model, ["a cat"], [0], steps=2))
    network = next(n for n, m in parts.items() if m is model.network)
    assert torch.bfloat16 in {dtype for _, dtype in seen[network]}
    for part in seen.keys() - {network}:
        assert all(given == found for given, found in seen[part]), part


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(fails, model_folder, monkeypatch):
    model = load(model_folder("sd-epsilon"))
    parts = [model.network, model.pipeline.vae]
    before = [dict(vars(part)) for part in parts]
    if fails:
        monkeypatch.setattr(type(model.network), "forward", lambda *_a, **_k: pytest.fail("no prediction"))
    with pytest.raises(pytest.fail.Exception) if fails else nullcontext():
        list(draw_images(model, ["a cat"], [0], steps=1))
    assert [dict(vars(part)) for part in parts] == before


def test_what_else_pipelines_need(model_folder, tmp_path, monkeypatch):
    folder = tmp_path / "img2img"
    StableDiffusionImg2ImgPipeline.from_pretrained(model_folder("sd-epsilon"), safety_checker=None).save_pretrained(
        folder
    )
    (one,), (other,) = (
        list(draw_images(load(f), ["a cat"], [0], steps=2)) for f in (folder, model_folder("sd-epsilon"))
    )
    assert np.array_equal(one, other)
    model, asked = load(model_folder("flux-schnell")), []
    encode = model.pipeline.encode_prompt
    monkeypatch.setattr(
        model.pipeline, "encode_prompt", lambda *a, **k: asked.append(k["max_sequence_length"]) or encode(*a, **k)
    )
    list(draw_images(model, ["a cat"], [0], steps=1))
    assert set(asked) == {model.max_tokens}


def test_pixels_are_kept_within_what_images_hold_as_the_model_scales_them():
    """Tests a white image under EDM's preconditioning, whose latents are pixels / σ_d."""
    edge = 1 / EDM().sigma_data
    model = Gaussian(torch.full((1, 3, 4, 4), edge), torch.full((1, 3, 4, 4), 1e-4), EDM(), "epsilon")
    noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    drawn = ddim(model, model.condition([0]), noise, steps=50, clip=True)
    assert float((drawn - edge).abs().max()) < 0.05 * edge


def test_more_images_than_are_drawn_at_once(model_folder):
    model = load(model_folder("class-unet"))
    assert len(list(draw_images(model, [0] * (BATCH + 1), range(BATCH + 1), steps=1))) == BATCH + 1


def test_each_family_is_guided_as_its_pipeline_is_by_default(model_folder):
    for name, default in (("dit", 4.0), ("class-unet", 1.0)):
        model = load(model_folder(name))
        images = [next(draw_images(model, [0], [0], steps=2, guidance=g)) for g in (None, default, 2.0)]
        own, same, other = (np.asarray(image, int) for image in images)
        assert (own == same).all()
        assert (own != other).any() or default == 1.0
    assert inspect.signature(DiTPipeline.__call__).parameters["guidance_scale"].default == 4.0


def test_guidance(model_folder):
    model = load(model_folder("dit"))
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    rows = torch.zeros(2, dtype=torch.int64)
    own, null = model.condition([4])[rows], model.null_condition()[rows]

    def drawn(conditioning, **options):
        return ddim(model, conditioning, noise, steps=3, **options)

    torch.testing.assert_close(drawn(own, null=null, guidance=0.0), drawn(null))
    torch.testing.assert_close(drawn(own, null=null, guidance=1.0), drawn(own), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(drawn(own, null=null, guidance=4.0), drawn(own), atol=1e-2)


def test_what_the_bundled_model_draws_it_calls_by_that_name():
    model = load("fashion")
    names = [name for name in model.class_names if name not in ("Shirt", "Coat", "Pullover")]
    images = list(draw_images(model, names, range(len(names)), steps=20))
    assert images[0].mode == "L"
    results = DiffusionClassifier(model, batch_size=80).classify(images, strategy="fixed:8")
    assert sum(r.label == name for r, name in zip(results, names, strict=True)) >= len(names) - 1


@pytest.mark.parametrize(
    ("name", "classes", "options", "message"),
    [
        ("class-unet", [0], {"steps": 0}, "at least 1 step"),
        ("class-unet", ["lion"], {}, "not trained on the class 'lion'"),
        ("sd-epsilon", ["a" * 50], {}, "tokens"),
    ],
)
def test_bad_input(name, classes, options, message, model_folder):
    with pytest.raises(InputError, match=message):
        list(draw_images(load(model_folder(name)), classes, [0], **options))


def test_a_closed_form_draws_nothing():
    with pytest.raises(InputError, match="no images can be drawn from a gaussian model"):
        list(draw_images(gaussian(3), [0], [0]))


def test_a_prediction_that_overflows_is_made_again_in_float32(model_folder, monkeypatch):
    model = load_denoiser(model_folder("class-unet"), device="cpu", dtype="bfloat16")
    x, t = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([9, 500])
    asked = x, t, model.condition(model.class_names[:2]), torch.arange(2)
    predict = model.predict_noise
    with model.full_precision():
        exact = predict(*asked)
    monkeypatch.setattr(
        model, "predict_noise", lambda *a: predict(*a) * (torch.inf if model.dtype == torch.bfloat16 else 1)
    )
    assert torch.equal(finite_noise(model, *asked), exact)
    assert model.dtype == torch.bfloat16
    monkeypatch.setattr(model, "predict_noise", lambda *a: predict(*a) * torch.nan)
    with pytest.raises(InputError, match="is not finite"):
        finite_noise(model, *asked)
