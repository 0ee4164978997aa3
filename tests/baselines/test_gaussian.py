import numpy as np
import pytest
import torch
from commands import error
from contrastive_builders import build
from evaluations import pixels
from PIL import Image
from scipy.spatial.distance import mahalanobis
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from transformers import AutoModelForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from diffusion_classifier.baselines.encoders import DiffusionFeatures, features, load_encoder
from diffusion_classifier.baselines.gaussian import fit_gaussians, mean_features
from diffusion_classifier.data.images import preprocess
from diffusion_classifier.data.labelled import open_labelled
from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.errors import InputError
from diffusion_classifier.training.images import TrainingImages
from diffusion_classifier.training.supervised import SupervisedConfig, build_classifier, train_supervised


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, *build("clip", folder)


def drawn(k, n, c=6, seed=0):
    """Features of K classes with one covariance, and what Bayes' rule makes of others."""
    rng = np.random.default_rng(seed)
    means, root = rng.normal(size=(k, c)), rng.normal(size=(c, c)) / 2
    labels = rng.integers(k, size=n)
    fresh = rng.normal(size=(500, c)) @ root.T + means[rng.integers(k, size=500)]
    distance = fresh[:, None] - means
    squared = np.einsum("mkc,cd,mkd->mk", distance, np.linalg.inv(root @ root.T), distance)
    return rng.normal(size=(n, c)) @ root.T + means[labels], labels, fresh, -squared / 2


def test_logits_are_half_the_squared_distances():
    """By scipy, of the covariance that scikit-learn fits; so that energies are less the farther all classes are."""
    values, labels, fresh, _ = drawn(3, 200)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[1 / 3] * 3).fit(values, labels)
    precision = np.linalg.inv(fitted.covariance_)
    expected = [[-(mahalanobis(x, m, precision) ** 2) / 2 for m in fitted.means_] for x in fresh[:20]]
    with torch.no_grad():
        found = fit_gaussians(values, labels, 3)(torch.from_numpy(fresh[:20]).float()[:, :, None, None])
    torch.testing.assert_close(found, torch.tensor(expected).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_of_gaussians_the_posterior_is_bayes(k):
    values, labels, fresh, exact = drawn(k, 40_000)
    head = fit_gaussians(values, labels, k)
    with torch.no_grad():
        found = head(torch.from_numpy(fresh).float()[:, :, None, None]).softmax(1)
    torch.testing.assert_close(found, torch.from_numpy(exact).softmax(1).float(), atol=0.05, rtol=0)


def test_fewer_images_than_dimensions_will_do():
    values, labels, fresh, exact = drawn(3, 24, c=40)
    with torch.no_grad():
        found = fit_gaussians(values, labels, 3)(torch.from_numpy(fresh).float()[:, :, None, None])
    assert float((found.argmax(1).numpy() == exact.argmax(1)).mean()) > 0.6  # 1/3 by chance


def test_a_class_of_one_image_is_refused():
    with pytest.raises(InputError, match="two images of each class; class 1 of 3 has fewer"):
        fit_gaussians(np.zeros((5, 2)), np.array([0, 0, 1, 2, 2]), 3)


def test_features_that_do_not_vary_are_refused():
    with pytest.raises(InputError, match="do not vary within any class"):
        fit_gaussians(np.repeat(np.eye(2), 3, axis=0), np.repeat([0, 1], 3), 2)


class TestEncoders:
    def test_of_a_network_trained_on_small_images_large_ones_are_made_small_first(self, tmp_path):
        data = TrainingImages(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.arange(2), ("a", "b"))
        train_supervised(data, SupervisedConfig(architecture="resnet-18", epochs=1, batch_size=2, warmup=1), tmp_path)
        encoder = load_encoder(tmp_path, "hub", device="cpu")
        large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
        small = large.resize((28, 28), Image.Resampling.BICUBIC)
        torch.testing.assert_close(encoder([large]), encoder([small]))

    def test_of_a_contrastive_model(self, clip):
        folder, model, _, images = clip
        encoder = load_encoder(folder, "hub", device="cpu")
        pictures = [Image.fromarray(pixels(i)) for i in range(3)]
        with torch.inference_mode():
            own = model.get_image_features(**images(images=pictures, return_tensors="pt")).pooler_output
        torch.testing.assert_close(encoder(pictures)[:, :, 0, 0], own)
        assert encoder.image_size == 12

    @pytest.mark.parametrize("architecture", ["resnet-18", "vit-tiny"])
    def test_of_a_classifier_its_own_head_reads_them(self, architecture, tmp_path):
        data = TrainingImages(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), torch.arange(2), ("a", "b"))
        network = build_classifier(SupervisedConfig(architecture=architecture), data).eval()
        network.save_pretrained(tmp_path)
        ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
        encoder = load_encoder(tmp_path, "hub", device="cpu")
        pictures = [Image.fromarray(pixels(i)).resize((28, 28)) for i in range(2)]
        found = encoder(pictures)
        network = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        inputs = ViTImageProcessorPil.from_pretrained(tmp_path)(images=pictures, return_tensors="pt")
        with torch.inference_mode():
            if architecture == "vit-tiny":
                expected = network.vit(**inputs).last_hidden_state.mean(1)[:, :, None, None]
                torch.testing.assert_close(found, expected)
            else:
                logits = network.classifier(found.mean((2, 3), keepdim=True))
                torch.testing.assert_close(logits, network(**inputs).logits, rtol=1e-4, atol=1e-5)

    def test_of_a_diffusion_model(self, model_folder):
        denoiser = load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")
        images = [Image.fromarray(pixels(i)) for i in range(2)]
        latents = denoiser.encode(torch.stack([preprocess(image, denoiser.image_size) for image in images]))
        torch.testing.assert_close(DiffusionFeatures(denoiser)(images), features(denoiser, latents))


def test_batches_make_no_difference(clip, photos, monkeypatch):
    from diffusion_classifier.baselines import gaussian

    encoder, source, told = load_encoder(clip[0], "hub", device="cpu"), open_labelled(str(photos)), []
    whole = mean_features(encoder, source)
    monkeypatch.setattr(gaussian, "_AT_ONCE", 7)
    np.testing.assert_allclose(mean_features(encoder, source, told.append), whole, rtol=1e-5, atol=1e-6)
    assert (whole.shape, told) == ((30, 8), [7, 14, 21, 28, 30])


class TestCommand:
    @pytest.mark.parametrize("which", ["--model", "--encoder"])
    def test_fitted_and_evaluated(self, which, call, clip, model_folder, photos, tmp_path):
        folder = clip[0] if which == "--encoder" else model_folder("class-unet")
        code, out, err = call("baseline", "gaussian", photos, which, folder, "--out", tmp_path / "fitted")
        assert (code, out) == (0, "")
        assert "fitted to 30 images of 3 classes" in err
        code, out, _ = call("evaluate", photos, "--model", tmp_path / "fitted", "--out", tmp_path / "run")
        assert (code, "30 of 30" in out) == (0, True)
        assert float(out.split("accuracy")[1].split("%")[0].split()[-1]) > 80

    def test_bad_input(self, call, clip, photos, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        here, out = ("--encoder", clip[0]), ("--out", tmp_path / "fitted")
        for arguments, message in (
            (out, "choose what computes the features"),
            ((*here, "--model", "fashion", *out), "choose what computes the features"),
            (("--model", clip[0], *out), "is not a folder that a diffusers pipeline was saved to"),
            (("--encoder", tmp_path / "full", *out), "cannot be loaded: Unrecognized model"),
            ((*here, "--out", tmp_path / "full"), "already exists: choose another --out"),
        ):
            code, _, err = call("baseline", "gaussian", photos, *arguments)
            assert (code, message in error(err)) == (2, True), err
