"""What every family owes to the rest of the package, on tiny pipelines saved and loaded as a user's would be."""

import random
from functools import cache

import numpy as np
import pytest
import torch
from builders import ID2LABEL
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffusion_classifier.denoisers import base, load_denoiser
from diffusion_classifier.denoisers.gaussian import Gaussian
from diffusion_classifier.images import preprocess
from diffusion_classifier.schedules import RectifiedFlow, add_noise

CLASSES = {
    "sd-epsilon": ["a photo of a cat", "a dog", ""],
    "sd-v": ["a photo of a cat", "a dog", ""],
    "dit": [0, 4, 2],
    "class-unet": [2, 0, 1],
    "gaussian": [1, 2, 0],
}
T = torch.tensor([3, 500, 999])


@cache
def gaussian():
    generator = torch.Generator().manual_seed(0)
    means, variances = torch.rand(2, 3, 3, 4, 4, generator=generator)
    return Gaussian(means, variances + 0.1, RectifiedFlow(), "flow")


@pytest.fixture(scope="module")
def load(model_folder):
    return cache(lambda name, dtype="float32": load_denoiser(model_folder(name), device="cpu", dtype=dtype))


@pytest.fixture(params=CLASSES)
def name(request):
    return request.param


@pytest.fixture(params=[name for name in CLASSES if name != "gaussian"])
def saved(request):
    """A family that has pipelines on disk."""
    return request.param


@pytest.fixture
def denoiser(name, load):
    return gaussian() if name == "gaussian" else load(name)


@pytest.fixture(scope="module")
def pipeline(model_folder):
    """The same folder as diffusers itself loads it."""
    return cache(lambda name: DiffusionPipeline.from_pretrained(model_folder(name), safety_checker=None))


def picture(size, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, channels), np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (size, size, 3)).copy())


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predict(denoiser, classes, t=T):
    """ε̂ for every class (rows) at one noisy latent per time."""
    noisy = randn(len(t), *denoiser.latent_shape)
    conditioning = denoiser.condition(classes)[torch.arange(len(classes)).repeat(len(t))]
    latent_index = torch.arange(len(t)).repeat_interleave(len(classes))
    return denoiser.predict_noise(noisy, t, conditioning, latent_index)


def reference_noise(pipeline, output, t, noisy):
    """ε̂ by the library's own conversion: its estimate of x, put into x_t = α·x + σ·ε."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(1000)
    x = scheduler.step(output, int(t), noisy).pred_original_sample
    alpha2 = scheduler.alphas_cumprod[t]
    return (noisy - alpha2.sqrt() * x) / (1 - alpha2).sqrt()


def stable_diffusion_row(pipe, image, prompt, t, noise):
    latent = pipe.vae.encode(image).latent_dist.mean
    latent = (latent - (pipe.vae.config.shift_factor or 0)) * pipe.vae.config.scaling_factor
    noisy = pipe.scheduler.add_noise(latent, noise, t)
    tokens = pipe.tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt")
    output = pipe.unet(noisy, t, encoder_hidden_states=pipe.text_encoder(tokens.input_ids)[0]).sample
    return (noise - reference_noise(pipe, output, t, noisy)).square().mean()


def dit_row(pipe, image, label, t, noise):
    latent = pipe.vae.encode(image).latent_dist.mean * pipe.vae.config.scaling_factor
    noisy = pipe.scheduler.add_noise(latent, noise, t)
    output, _ = pipe.transformer(noisy, timestep=t[None], class_labels=torch.tensor([label])).sample.chunk(2, dim=1)
    return (noise - reference_noise(pipe, output, t, noisy)).square().mean()


def class_unet_row(pipe, image, label, t, noise):
    folded = torch.stack([image[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=1)
    noisy = pipe.scheduler.add_noise(folded, noise, t)
    output = pipe.unet(noisy, t, class_labels=torch.tensor([label])).sample
    return (noise - reference_noise(pipe, output, t, noisy)).square().mean()


ROWS = {"sd-epsilon": stable_diffusion_row, "sd-v": stable_diffusion_row, "dit": dit_row, "class-unet": class_unet_row}


@torch.no_grad()
def test_errors_equal_those_of_a_plain_loop(saved, load, pipeline):
    denoiser = load(saved)
    # Grey, so that the greyscale model sees these very values.
    image = preprocess(picture(denoiser.image_size, channels=1), denoiser.image_size, crop=denoiser.crop)[None]
    noise = randn(len(T), *denoiser.latent_shape)
    pipe = pipeline(saved)
    expected = torch.stack(
        [ROWS[saved](pipe, image, c, t, n[None]) for t, n in zip(T, noise, strict=True) for c in CLASSES[saved]]
    )

    alpha, sigma = denoiser.schedule(T)
    noisy = add_noise(denoiser.encode(image).expand_as(noise), noise, alpha, sigma)
    k = len(CLASSES[saved])
    conditioning = denoiser.condition(CLASSES[saved])[torch.arange(k).repeat(len(T))]
    latent_index = torch.arange(len(T)).repeat_interleave(k)
    predicted = denoiser.predict_noise(noisy, T, conditioning, latent_index)
    errors = (noise[latent_index] - predicted).square().flatten(1).mean(1)

    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-6)
    at_500 = errors.view(len(T), k)[1]
    assert len(set(at_500.tolist())) == k  # else the classes would not have mattered above


def test_noising_is_the_schedulers_own(saved, load, pipeline):
    x, noise = randn(2, len(T), 4, 8, 8)
    expected = pipeline(saved).scheduler.add_noise(x, noise, T)
    torch.testing.assert_close(add_noise(x, noise, *load(saved).schedule(T)), expected, rtol=1e-5, atol=1e-6)


def test_a_perfect_network_is_read_as_the_noise(saved, load, pipeline, monkeypatch):
    denoiser, config = load(saved), pipeline(saved).scheduler.config
    scheduler = DDPMScheduler.from_config(config)
    x, noise = randn(2, len(T), *denoiser.latent_shape)
    target = {"epsilon": noise, "v_prediction": scheduler.get_velocity(x, noise, T), "sample": x}
    output = target[config.prediction_type]
    if saved == "dit":
        output = torch.cat([output, randn(*output.shape, seed=1)], dim=1)  # learned variance, to be dropped
    monkeypatch.setattr(denoiser, "forward", lambda *_: output)
    noisy = scheduler.add_noise(x, noise, T)
    conditioning = denoiser.condition(CLASSES[saved])
    found = denoiser.predict_noise(noisy, T, conditioning, torch.arange(len(T)))
    torch.testing.assert_close(found, noise, rtol=1e-3, atol=1e-4)


def test_latents_are_those_of_the_librarys_own_preprocessing(saved, load, pipeline):
    denoiser, pipe = load(saved), pipeline(saved)
    image = picture(denoiser.image_size)
    latent = denoiser.encode(preprocess(image, denoiser.image_size, crop=denoiser.crop)[None])
    assert latent.shape[1:] == denoiser.latent_shape
    assert latent.dtype == torch.float32
    if hasattr(pipe, "vae"):
        config = pipe.vae.config
        assert denoiser.image_size == config.sample_size
        mean = pipe.vae.encode(VaeImageProcessor().preprocess(image)).latent_dist.mean
        expected = (mean - (config.shift_factor or 0)) * config.scaling_factor
    else:
        grey = torch.from_numpy(np.array(image.convert("L"))).float() / 127.5 - 1
        expected = torch.stack([grey[i::2, j::2] for i in (0, 1) for j in (0, 1)])[None]
    # Half a grey level: Pillow rounds the luma to 8 bits.
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-5 if hasattr(pipe, "vae") else 1.01 / 255)


def test_global_randomness_is_neither_read_nor_written(name, model_folder):
    def run(seed):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        before = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        denoiser = (
            gaussian() if name == "gaussian" else load_denoiser(model_folder(name), device="cpu", dtype="float32")
        )
        size = denoiser.image_size
        latents = denoiser.encode(preprocess(picture(size), size)[None].repeat(2, 1, 1, 1))
        predictions = predict(denoiser, CLASSES[name])
        after = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        return latents, predictions

    for first, second in zip(run(0), run(1), strict=True):
        assert torch.equal(first, second)


def test_rows_do_not_depend_on_their_order_nor_on_the_batch(name, denoiser):
    classes = CLASSES[name]
    noisy = randn(len(T), *denoiser.latent_shape)
    conditioning = denoiser.condition(classes)
    latent_index = torch.tensor([0, 2, 2, 1, 0, 1])
    rows = torch.tensor([0, 0, 1, 2, 1, 2])
    together = denoiser.predict_noise(noisy, T, conditioning[rows], latent_index)
    order = torch.tensor([5, 1, 4, 0, 2, 3])
    permuted = denoiser.predict_noise(noisy, T, conditioning[rows[order]], latent_index[order])
    torch.testing.assert_close(permuted, together[order], rtol=1e-4, atol=1e-4)
    for b in range(len(rows)):
        # Row b sees noisy[latent_index[b]] at t[latent_index[b]], as if it were alone.
        u = latent_index[b]
        alone = denoiser.predict_noise(noisy[u, None], T[u, None], conditioning[rows[b, None]], torch.tensor([0]))
        torch.testing.assert_close(alone[0], together[b], rtol=1e-4, atol=1e-4)


def test_conditioning_does_not_depend_on_the_other_classes(name, denoiser):
    classes = CLASSES[name]
    together = denoiser.condition(classes)
    assert len(together) == len(classes)
    for i, c in enumerate(classes):
        for key, tensor in denoiser.condition([c]).tensors.items():
            torch.testing.assert_close(tensor[0], together.tensors[key][i])


def test_bfloat16_is_close_and_leaves_the_latents_alone(saved, load):
    full, half = load(saved), load(saved, "bfloat16")
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    image = preprocess(picture(full.image_size), full.image_size)[None]
    assert torch.equal(half.encode(image), full.encode(image))
    t = torch.tensor([100, 500, 999])
    expected, found = predict(full, CLASSES[saved], t), predict(half, CLASSES[saved], t)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert not torch.equal(found, expected)
    assert (found - expected).square().mean() < 1e-3 * expected.square().mean()


def tensors(denoiser):
    return [*denoiser.network.named_parameters(), *denoiser.network.named_buffers()]


def test_full_precision_is_for_a_while(saved, load):
    denoiser = load(saved, "bfloat16")
    weights = {key: value.clone() for key, value in tensors(denoiser)}
    before = predict(denoiser, CLASSES[saved])
    with pytest.raises(KeyError), denoiser.full_precision():  # noqa: PT012
        assert denoiser.dtype == torch.float32
        assert not torch.equal(predict(denoiser, CLASSES[saved]), before)
        raise KeyError
    assert denoiser.dtype == torch.bfloat16
    assert all(
        value.dtype == weights[key].dtype and torch.equal(value, weights[key]) for key, value in tensors(denoiser)
    )


def test_full_precision_that_does_not_fit_leaves_no_mixture(load, monkeypatch):
    denoiser = load("class-unet", "bfloat16")
    cast = base._to

    def out_of_memory_half_way(module, dtype):
        if dtype == torch.float32:
            cast(next(module.children()), dtype)
            raise torch.OutOfMemoryError
        return cast(module, dtype)

    monkeypatch.setattr(base, "_to", out_of_memory_half_way)
    with pytest.raises(torch.OutOfMemoryError), denoiser.full_precision():
        pass
    assert {p.dtype for p in denoiser.network.parameters()} == {torch.bfloat16}


def test_networks_are_ready_for_inference(saved, load):
    modules = [m for part in load(saved)._modules.values() for m in part.modules()]
    assert not any(m.training for m in modules)
    assert not any(p.requires_grad for m in modules for p in m.parameters())


def test_class_names_are_known_where_there_are_any(load):
    assert load("sd-v").class_names is None
    assert len(load("dit").class_names) == len(ID2LABEL)
    assert load("class-unet").class_names == ("cat", "dog", "door")
