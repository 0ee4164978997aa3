"""Contract of every family, on tiny pipelines that are saved and loaded as a user's are."""

import random
import shutil
from functools import cache
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from builders import ID2LABEL, edit_json
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from text_builders import TEXT_BUILDERS

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data.images import preprocess
from diffusion_classifier.denoisers import base, load_denoiser
from diffusion_classifier.denoisers.families.gaussian import Gaussian
from diffusion_classifier.denoisers.families.late import LateConditionedPipeline
from diffusion_classifier.denoisers.families.registry import FAMILIES
from diffusion_classifier.denoisers.flops import count_flops
from diffusion_classifier.diffusion.schedules import RectifiedFlow, add_noise

CLASSES = {
    "sd-epsilon": ["a photo of a cat", "a dog", ""],
    "sd-v": ["a photo of a cat", "a dog", ""],
    "dit": [0, 4, 2],
    "class-unet": [2, 0, 1],
    "late-unet": [2, 0, 1],
    "late-dit": [2, 0, 1],
    "edm-unet": [2, 0, 1],
    "gaussian": [1, 2, 0],
    **{name: ["a photo of a cat", "a dog", ""] for name in TEXT_BUILDERS},
}
T = torch.tensor([3, 500, 999])
IN_PIXELS = ("class-unet", "late-unet", "late-dit", "edm-unet")


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
    """The same folder, loaded by diffusers itself."""
    without = {"sd3-without-t5": {"text_encoder_3": None, "tokenizer_3": None}, "sd-epsilon": {"safety_checker": None}}
    ours = dict.fromkeys(("late-unet", "late-dit"), LateConditionedPipeline)
    return cache(
        lambda name: ours.get(name, DiffusionPipeline).from_pretrained(model_folder(name), **without.get(name, {}))
    )


def test_every_family_is_here(load):
    assert {load(name).family for name in CLASSES if name != "gaussian"} == {family.family for family in FAMILIES}


def picture(size, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, channels), np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (size, size, 3)).copy())


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predict(denoiser, classes, t=T):
    """Return ε̂ for every class (rows) at one noisy latent per time."""
    noisy = randn(len(t), *denoiser.latent_shape)
    conditioning = denoiser.condition(classes)[torch.arange(len(classes)).repeat(len(t))]
    latent_index = torch.arange(len(t)).repeat_interleave(len(classes))
    return denoiser.predict_noise(noisy, t, conditioning, latent_index)


def reference_noise(pipeline, output, t, noisy):
    """Return ε̂ by the library's own conversion: its estimate of x, put into x_t = α·x + σ·ε."""
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


def folded(image):
    """Fold pixels (…, H, W) into four channels (…, 4, H/2, W/2)."""
    return torch.stack([image[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-3)


def class_unet_row(pipe, image, label, t, noise):
    folded_image = folded(image[:, 0])
    noisy = pipe.scheduler.add_noise(folded_image, noise, t)
    output = pipe.unet(noisy, t, class_labels=torch.tensor([label])).sample
    return (noise - reference_noise(pipe, output, t, noisy)).square().mean()


def late_unet_row(pipe, image, label, t, noise):
    noisy = pipe.scheduler.add_noise(folded(image[:, 0]), noise, t)
    seen = torch.cat([noisy, pipe.trunk(noisy, t).sample], dim=1)
    output = pipe.unet(seen, t, class_labels=torch.tensor([label])).sample
    return (noise - reference_noise(pipe, output, t, noisy)).square().mean()


def late_dit_row(pipe, image, label, t, noise):
    noisy = pipe.scheduler.add_noise(folded(image[:, 0]), noise, t)
    features = pipe.trunk(noisy, t[None], class_labels=torch.tensor([1])).sample
    output = pipe.unet(torch.cat([noisy, features], dim=1), t, class_labels=torch.tensor([label])).sample
    return (noise - reference_noise(pipe, output, t, noisy)).square().mean()


def edm_unet_row(pipe, image, label, t, noise):
    """Return the error by Karras et al. 2022, table 1 and equation 7."""
    low, high, mean = pipe.scheduler.config.sigma_min, pipe.scheduler.config.sigma_max, 0.5
    s = (low ** (1 / 7) + float(t) / 1000 * (high ** (1 / 7) - low ** (1 / 7))) ** 7
    noisy = folded(image[:, 0]) + s * noise
    total = s**2 + mean**2
    output = pipe.unet(noisy / total**0.5, torch.tensor(s).log() / 4, class_labels=torch.tensor([label])).sample
    denoised = noisy * mean**2 / total + output * s * mean / total**0.5
    return (noise - (noisy - denoised) / s).square().mean()


ROWS = {
    "sd-epsilon": stable_diffusion_row, "sd-v": stable_diffusion_row, "dit": dit_row, "class-unet": class_unet_row,
    "edm-unet": edm_unet_row, "late-unet": late_unet_row, "late-dit": late_dit_row,
}  # fmt: skip


@pytest.mark.parametrize("saved", ROWS)
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


CALLS = {  # arguments of a pipeline's __call__ that keep guidance away
    "dit": {"guidance_scale": 1},
    "flux-dev": {"guidance_scale": 1.0},
    "flux-schnell": {"guidance_scale": 1.0, "max_sequence_length": 256},
    "lcm": {"guidance_scale": 8.5},
    "pixart": {"guidance_scale": 1, "use_resolution_binning": False},
    "pixart-alpha": {"guidance_scale": 1, "use_resolution_binning": False},
    "sana": {"guidance_scale": 1, "use_resolution_binning": False},
    "z-image": {"guidance_scale": 0},
}


@pytest.mark.parametrize("saved", [name for name in CLASSES if name not in ("gaussian", *IN_PIXELS)])
@torch.no_grad()
def test_the_network_is_called_as_the_pipeline_calls_it(saved, load, pipeline, monkeypatch):
    """In one sampling step, the scheduler gets the output of `forward` for the same latent and time."""
    denoiser, pipe = load(saved), pipeline(saved)
    pipe.set_progress_bar_config(disable=True)
    step, seen = pipe.scheduler.step, []

    def spy(output, t, sample, **options):
        seen.append((output, t, sample))
        return step(output, t, sample, **options)

    monkeypatch.setattr(pipe.scheduler, "step", spy)
    if saved == "dit":
        given, size = {"class_labels": [4]}, {}
    else:
        edge = 32 if saved == "sana" else denoiser.image_size  # its pipeline wants a multiple of that
        given, size = {"prompt": "A dog"}, {"height": edge, "width": edge}
    if saved == "pixart-alpha":  # the pipeline knows by this size that the network is to be told it
        config = type(denoiser.network_config)({**denoiser.network_config, "sample_size": 128})
        monkeypatch.setattr(pipe.transformer, "_internal_dict", config)
    options = {"guidance_scale": 1, **CALLS.get(saved, {})}
    options = {"output_type": "pt" if saved in ("if", "dit") else "latent", **options}
    pipe(**given, **size, **options, num_inference_steps=1, generator=torch.Generator().manual_seed(0))

    ((output, t, sample),) = seen
    if saved.startswith("flux"):
        output, sample = (FluxPipeline._unpack_latents(a, 16, 16, pipe.vae_scale_factor) for a in (output, sample))
    if saved == "playground":
        assert float(denoiser.schedule.network_time(torch.tensor([1000.0]))) == pytest.approx(float(t), abs=1e-5)
        sample, t = pipe.scheduler.precondition_inputs(sample, pipe.scheduler.sigmas[0]), torch.tensor(1000.0)
    found = denoiser.forward(sample, t.expand(1), denoiser.condition([4] if saved == "dit" else ["A dog"]))
    channels = denoiser.latent_shape[0]
    torch.testing.assert_close(found[:, :channels], output[:, :channels], rtol=1e-4, atol=1e-5)
    assert output.std() > 1e-3


@pytest.mark.parametrize("sampler", ["EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
def test_the_sampler_that_a_pipeline_was_saved_with_changes_nothing(sampler, load, model_folder, tmp_path):
    folder = shutil.copytree(model_folder("sdxl"), tmp_path / "sdxl")
    scheduler = getattr(diffusers, f"{sampler}Scheduler")
    scheduler.from_config(DDIMScheduler.load_config(folder / "scheduler")).save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", scheduler.__name__])
    image = picture(16)
    errors = [
        DiffusionClassifier(denoiser, batch_size=4).errors(image, CLASSES["sdxl"][:2], timesteps=[3, 500, 999])
        for denoiser in (load("sdxl"), load_denoiser(folder, device="cpu", dtype="float32"))
    ]
    assert torch.equal(*errors)


def test_operations_can_be_counted(name, denoiser):
    row = torch.zeros(1, dtype=torch.int64)
    one, two = (count_flops(denoiser, denoiser.condition(CLASSES[name])[r], r) for r in (row, row.repeat(2)))
    assert one <= two <= 2 * one
    assert one > 0 or name == "gaussian"


def edm_units(pipe, x, noise, t):
    """Return EDM's image, its noisy version, and the standard deviation s of the noise."""
    u, config = t / 1000, pipe.scheduler.config
    s = (config.sigma_min ** (1 / 7) * (1 - u) + config.sigma_max ** (1 / 7) * u).view(-1, 1, 1, 1) ** 7
    image = x * config.sigma_data
    return image, image + s * noise, s


def is_flow(pipe):
    return type(pipe.scheduler).__name__.startswith("FlowMatch") or pipe.scheduler.config.get("use_flow_sigmas")


def noised(pipe, x, noise, t):
    """Noise images by the pipeline's own scheduler, or by the formula of its training."""
    name = type(pipe.scheduler).__name__
    if name.startswith("EDM"):
        _, noisy, s = edm_units(pipe, x, noise, t)
        return pipe.scheduler.precondition_inputs(noisy, s)
    if is_flow(pipe):
        sigma = t.view(-1, 1, 1, 1) / 1000
        return (1 - sigma) * x + sigma * noise
    return pipe.scheduler.add_noise(x, noise, t)


def test_noising_is_the_schedulers_own(saved, load, pipeline):
    denoiser = load(saved)
    x, noise = randn(2, len(T), *denoiser.latent_shape)
    found = add_noise(x, noise, *denoiser.schedule(T))
    torch.testing.assert_close(found, noised(pipeline(saved), x, noise, T), rtol=1e-5, atol=1e-6)


class Exact(torch.nn.Module):
    """A network that returns a given output."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *_args, **_options):
        return SimpleNamespace(sample=self.output)


def exact_output(saved, pipe, x, noise, t):
    """Return the output of a perfect network of this family, in its own layout."""
    config = pipe.scheduler.config
    if saved in ("playground", "edm-unet"):
        image, noisy, s = edm_units(pipe, x, noise, t)
        without = pipe.scheduler.precondition_outputs(noisy, torch.zeros_like(noisy), s)
        unit = pipe.scheduler.precondition_outputs(noisy, torch.ones_like(noisy), s) - without
        return (image - without) / unit
    if saved in ("dit", "if", "pixart", "pixart-alpha"):
        return torch.cat([noise, randn(*noise.shape, seed=1)], dim=1)  # learned variance, to be dropped
    if saved.startswith("flux"):
        return FluxPipeline._pack_latents(noise - x, *noise.shape)
    if saved == "lumina2":
        return x - noise
    if saved == "z-image":
        return list((x - noise).unsqueeze(2))
    if is_flow(pipe):
        return noise - x
    velocity = DDPMScheduler.from_config(config).get_velocity
    return {"epsilon": noise, "sample": x}.get(config.prediction_type, velocity(x, noise, t))


def test_a_perfect_network_is_read_as_the_noise(saved, load, pipeline, monkeypatch):
    denoiser, pipe = load(saved), pipeline(saved)
    x, noise = randn(2, len(T), *denoiser.latent_shape)
    conditioning = denoiser.condition(CLASSES[saved])
    name = next(iter(denoiser._modules))
    monkeypatch.setitem(denoiser._modules, name, Exact(exact_output(saved, pipe, x, noise, T)))
    found = denoiser.predict_noise(noised(pipe, x, noise, T), T, conditioning, torch.arange(len(T)))
    torch.testing.assert_close(found, noise, rtol=1e-3, atol=1e-3 if saved in ("playground", "edm-unet") else 1e-4)


@torch.no_grad()
def test_latents_are_those_of_the_librarys_own_preprocessing(saved, load, pipeline):
    denoiser, pipe = load(saved), pipeline(saved)
    image = picture(denoiser.image_size)
    latent = denoiser.encode(preprocess(image, denoiser.image_size, crop=denoiser.crop)[None])
    assert latent.shape[1:] == denoiser.latent_shape
    assert latent.dtype == torch.float32
    pixels = VaeImageProcessor().preprocess(image)
    if hasattr(pipe, "vae"):
        config = pipe.vae.config
        encoded = pipe.vae.encode(pixels)
        mean = encoded.latent if saved == "sana" else encoded.latent_dist.mean
        expected = (mean - (config.get("shift_factor") or 0)) * config.scaling_factor
        if saved == "playground":  # so that latents * std / scaling_factor + mean, divided by σ_data, gives them back
            mean_, std = (torch.tensor(config[name]).view(4, 1, 1) for name in ("latents_mean", "latents_std"))
            expected = (mean - mean_) / std * config.scaling_factor / pipe.scheduler.config.sigma_data
    elif saved == "if":
        expected = pixels
    else:
        grey = torch.from_numpy(np.array(image.convert("L"))).float() / 127.5 - 1
        expected = folded(grey)[None] / (0.5 if saved == "edm-unet" else 1)
    # Half a grey level: Pillow rounds the luma to 8 bits.
    atol = 2.02 / 255 if saved == "edm-unet" else 1.01 / 255 if saved in IN_PIXELS else 1e-5
    torch.testing.assert_close(latent, expected, rtol=0, atol=atol)


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
    # T5 and the like are in 16 bits, too.
    bound = 1e-2 if saved in TEXT_BUILDERS else 1e-3
    assert (found - expected).square().mean() < bound * expected.square().mean()


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
    denoiser = load(saved)
    modules = [m for part in denoiser.modules() for m in part.modules()]
    assert not any(m.training for m in modules)
    assert not any(p.requires_grad for m in modules for p in m.parameters())


def test_class_names_are_known_where_there_are_any(load):
    assert load("sd-v").class_names is None
    assert len(load("dit").class_names) == len(ID2LABEL)
    assert load("class-unet").class_names == ("cat", "dog", "door")
