import numpy as np
import pytest
from commands import error
from PIL import Image

from diffusion_classifier import load_denoiser
from diffusion_classifier.data.prompts import distinct_names
from diffusion_classifier.denoisers.class_conditional import class_ids
from diffusion_classifier.denoisers.sampling import draw_images
from diffusion_classifier.errors import InputError
from diffusion_classifier.training.images import load_labelled_images
from diffusion_classifier.training.synthetic import SyntheticConfig, draw_data_set

RECIPE = SyntheticConfig(("door", "cat"), 3, steps=2)


def pixels(image):
    return np.asarray(image, float)


@pytest.fixture
def model(model_folder):
    return load_denoiser(model_folder("class-unet"), device="cpu", dtype="float32")


def test_a_data_set_to_train_on(model, tmp_path):
    files = list(draw_data_set(model, RECIPE, tmp_path / "drawn"))
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(6)]
    data = load_labelled_images(str(tmp_path / "drawn"))
    assert data.class_names == ("cat", "door")
    assert data.labels.tolist() == [1, 0] * 3
    seeds = [RECIPE.image(i)[2] for i in range(6)]
    assert len(set(seeds)) == 6
    for file, expected in zip(files, draw_images(model, ["door", "cat"] * 3, seeds, steps=2), strict=True):
        assert np.abs(pixels(Image.open(file)) - pixels(expected)).max() <= 1


def test_broken_off_and_gone_on_with(model, tmp_path):
    whole = list(draw_data_set(model, RECIPE, tmp_path / "whole"))
    begun = draw_data_set(model, RECIPE, tmp_path / "drawn")
    next(begun)
    next(begun)
    begun.close()
    (tmp_path / "drawn" / "000003.png.part").write_bytes(b"half")
    assert not (tmp_path / "drawn" / "metadata.csv").exists()
    assert len(list(draw_data_set(model, RECIPE, tmp_path / "drawn"))) == 4
    for file in whole:
        assert np.abs(pixels(Image.open(file)) - pixels(Image.open(tmp_path / "drawn" / file.name))).max() <= 1
    assert list(draw_data_set(model, RECIPE, tmp_path / "drawn")) == []
    with pytest.raises(InputError, match="images of other settings"):
        list(draw_data_set(model, SyntheticConfig(("door", "cat"), 3, steps=3), tmp_path / "drawn"))


def test_what_fails_before_its_first_image_leaves_the_folder_alone(model, tmp_path):
    for recipe in (SyntheticConfig(("door", "lion"), 3, steps=2), SyntheticConfig(("door", "cat"), 3, steps=0)):
        with pytest.raises(InputError):
            list(draw_data_set(model, recipe, tmp_path / "drawn"))
    with pytest.raises(InputError):
        SyntheticConfig(("door", "cat"), 3, ("a {}", "a bag"))
    assert len(list(draw_data_set(model, RECIPE, tmp_path / "drawn"))) == 6


def test_classes_of_one_name_are_told_by_their_index():
    names = ("crane", "heron", "crane")
    assert distinct_names(names) == ["crane (0)", "heron", "crane (2)"]
    assert class_ids(distinct_names(names), names) == [0, 1, 2]
    with pytest.raises(InputError, match=r"may be crane \(0\) or crane \(2\)"):
        class_ids(["crane"], names)


def test_prompts_are_of_random_templates():
    recipe = SyntheticConfig(("cat", "dog"), 50, ("a {}", "the {}"))
    prompts = [recipe.image(i)[:2] for i in range(100)]
    assert set(prompts) == {(c, f"{word} {c}") for c in ("cat", "dog") for word in ("a", "the")}
    assert 30 < sum(prompt.startswith("the") for _, prompt in prompts) < 70


class TestCommand:
    def test_of_classes_and_of_text(self, call, model_folder, tmp_path):
        few = ("--per-class", 2, "--steps", 2, "--device", "cpu")
        code, out, err = call(
            "baseline", "synthetic", "--model", model_folder("class-unet"), "--out", tmp_path / "a", *few
        )
        assert (code, out) == (0, "")
        assert "6 images generated, 6 in" in err
        text = ("--labels", "cat,dog", "--template", "a {}", "--dtype", "bfloat16")
        code, _, err = call(
            "baseline", "synthetic", "--model", model_folder("sd-epsilon"), "--out", tmp_path / "b", *few, *text
        )
        assert code == 0, err
        assert load_labelled_images(str(tmp_path / "b")).class_names == ("cat", "dog")

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            ("sd-epsilon", (), "is a text-to-image model: say which images"),
            ("class-unet", ("--template", "a {}"), "takes no --template"),
            ("class-unet", ("--labels", "cat,lion"), "not trained on the class 'lion'"),
            ("class-unet", ("--labels", "cat"), "two"),
            ("class-unet", ("--steps", 0), "at least 1 step"),
            ("class-unet", ("--guidance", 2, "--out", "."), "is there already"),
        ],
    )
    def test_bad_input(self, call, model_folder, tmp_path, name, arguments, message):
        out = () if "--out" in arguments else ("--out", tmp_path / "drawn")
        code, _, err = call("baseline", "synthetic", "--model", model_folder(name), "--device", "cpu", *out, *arguments)
        assert code == 2
        assert message in error(err)
