import pytest
import torch
from gaussians import gaussian

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.analysis.differentiable import DifferentiableScores
from diffusion_classifier.diffusion.draws import Draws, Timesteps
from diffusion_classifier.errors import InputError

TIMES = (100.0, 400.0, 800.0)


def images(b, size, seed=0):
    """Whole numbers of 255ths, which is what files hold."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (b, 3, size, size), generator=generator).float() / 255


def scores(model, num_draws=3, **options):
    draws = Draws(Timesteps("fixed", values=TIMES))
    return DifferentiableScores(model, range(len(model.class_names)), num_draws, 2.5, draws=draws, **options)


@pytest.mark.parametrize("name", ["class-unet", "late-unet", "late-dit"])
@pytest.mark.parametrize("loss", ["l2", "l1"])
def test_errors_are_those_of_the_classifier(name, loss, model_folder):
    model = load_denoiser(model_folder(name), device="cpu", dtype="float32")
    x = images(2, model.image_size)
    found = scores(model, loss=loss)
    classifier = DiffusionClassifier(load_denoiser(model_folder(name), device="cpu", dtype="float32"))
    for i in range(2):
        noise = torch.stack([found.draws.noise(d, 0, model.latent_shape) for d in range(3)])
        picture = (x[i].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        expected = classifier.errors(picture, range(len(model.class_names)), timesteps=TIMES, noise=noise, loss=loss)
        torch.testing.assert_close(found.errors(x)[i], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found(x), -2.5 * found.errors(x).mean(2))


def test_the_mean_is_weighted_as_that_of_the_classifier(model_folder):
    model = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
    found, x = scores(model, weights=(0.0, 2.0)), images(2, model.image_size)
    times = torch.tensor(TIMES)
    torch.testing.assert_close(found(x), -2.5 * (found.errors(x) * times).sum(2) / times.sum())


@pytest.mark.parametrize("name", ["class-unet", "late-unet"])
def test_the_gradient_is_the_slope(name, model_folder):
    model = load_denoiser(model_folder(name), device="cpu", dtype="float32")
    found, x = scores(model), images(2, model.image_size) * 0.9 + 0.05
    direction = images(2, model.image_size, seed=1) - 0.5
    wanted = torch.tensor([[1.0, -1.0, 0.5], [0.3, 0.2, -1.0]])
    x.requires_grad_(True)
    (found(x) * wanted).sum().backward()
    with torch.no_grad():
        step = 1e-2
        slope = ((found(x + step * direction) - found(x - step * direction)) * wanted).sum() / (2 * step)
    assert float((x.grad * direction).sum()) == pytest.approx(float(slope), rel=2e-2)


def test_fresh_draws_are_the_next_ones(model_folder):
    model = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
    x, classes = images(1, model.image_size), range(len(model.class_names))
    all_six = DifferentiableScores(model, classes, 6, 1.0).errors(x)
    fresh = DifferentiableScores(model, classes, 3, 1.0, fresh=True)
    torch.testing.assert_close(torch.cat([fresh.errors(x), fresh.errors(x)], dim=2), all_six, rtol=1e-4, atol=1e-5)
    same = DifferentiableScores(model, classes, 3, 1.0)
    assert torch.equal(same.errors(x), same.errors(x))


def test_of_gaussians_the_gradient_is_known():
    """There the error of a class is quadratic in the image: the slope between two images is exact at their middle."""
    model = gaussian(3)
    found = DifferentiableScores(model, model.class_names, 4, 1.0)
    a, b = (images(1, model.image_size, seed) for seed in (0, 1))
    middle = ((a + b) / 2).requires_grad_(True)
    found(middle)[0, 1].backward()
    rise = (found(b) - found(a))[0, 1]
    assert float((middle.grad * (b - a)).sum()) == pytest.approx(float(rise), rel=1e-3)


def test_bad_input(model_folder):
    model = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
    with pytest.raises(InputError, match="a differentiable loss is one of"):
        scores(model, loss="vlb")
    latent = load_denoiser(model_folder("dit"), device="cpu", dtype="float32")
    x = images(1, latent.image_size).requires_grad_(True)
    with pytest.raises(InputError, match="does not pass gradients on"):
        DifferentiableScores(latent, [0, 1], 2, 1.0).errors(x)
