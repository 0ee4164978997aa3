import json
import shutil

import pytest
import torch
from builders import dit

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.errors import InputError


@pytest.fixture(scope="module")
def denoiser(model_folder):
    return load_denoiser(model_folder("dit"), device="cpu", dtype="float32")


def ids(denoiser, *classes):
    return denoiser.condition(classes).tensors["class_labels"].tolist()


def test_every_synonym_is_a_name(denoiser):
    assert denoiser.class_names[0] == "tench, Tinca tinca"
    for name in ("tench, Tinca tinca", "tench", "tinca TINCA", 0):
        assert ids(denoiser, name) == [0]
    assert ids(denoiser, *denoiser.class_names) == list(range(11))
    assert ids(denoiser, "zebra") == [10]


def test_one_class_under_two_names_is_refused(denoiser):
    with pytest.raises(InputError, match=r"'tinca tinca' and 'tench' are one class .* give one of them"):
        denoiser.condition(["tinca tinca", "zebra", "tench"])


def test_a_whole_name_comes_before_a_synonym(denoiser):
    assert ids(denoiser, "missile", "projectile") == [3, 4]


def test_a_name_of_two_classes_is_refused_with_a_way_out(denoiser):
    with pytest.raises(InputError, match="crane, class 1 or crane, class 2"):
        denoiser.condition(["crane"])
    assert ids(denoiser, "class 2", "crane, class 1") == [2, 1]


def test_an_unknown_name_comes_with_near_ones(denoiser):
    with pytest.raises(InputError, match="'trench'; did you mean tench, Tinca tinca"):
        denoiser.condition(["trench"])
    with pytest.raises(InputError, match="'zzz'; it knows tench, Tinca tinca, crane"):
        denoiser.condition(["zzz"])


@pytest.mark.parametrize("index", [-1, 11])
def test_the_null_class_is_no_candidate(denoiser, index):
    with pytest.raises(InputError, match=f"class index {index} is not between 0 and 10"):
        denoiser.condition([index])


def test_images_are_cropped_as_in_training(denoiser):
    assert denoiser.crop == "adm"


def test_names_of_the_settings_come_first(model_folder, tmp_path):
    folder = shutil.copytree(model_folder("dit"), tmp_path / "dit")
    (folder / "diffusion_classifier.json").write_text(json.dumps({"class_names": list("abcdefghijk")}))
    assert load_denoiser(folder, device="cpu").class_names == tuple("abcdefghijk")


def test_without_names_the_indices_are_words(tmp_path):
    dit(tmp_path, id2label=None)
    denoiser = load_denoiser(tmp_path, device="cpu", dtype="float32")
    assert ids(denoiser, "3", 4) == [3, 4]


def test_the_first_config_of_the_published_model_still_loads(model_folder, tmp_path):
    """It names Transformer2DModel, as diffusers did before DiTTransformer2DModel."""
    folder = shutil.copytree(model_folder("dit"), tmp_path / "dit")
    for path in (folder / "model_index.json", folder / "transformer" / "config.json"):
        path.write_text(path.read_text().replace("DiTTransformer2DModel", "Transformer2DModel"))
    old = load_denoiser(folder, device="cpu", dtype="float32")
    new = load_denoiser(model_folder("dit"), device="cpu", dtype="float32")
    noisy, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 700])
    found, expected = (d.predict_noise(noisy, t, d.condition([0, 1]), torch.arange(2)) for d in (old, new))
    torch.testing.assert_close(found, expected)
