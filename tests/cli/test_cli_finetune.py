"""Fine-tuning by the command line, and its LoRA weights in use."""

import json

import pytest
from commands import error, save
from PIL import Image

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.training.images import load_labelled_images

FEW = ("--epochs", 1, "--batch-size", 2, "--joint", 0.3, "--device", "cpu", "--learning-rate", 0.05, "--ema", 0)


@pytest.fixture
def finetune(call, model_folder, tmp_path):
    def finetune(*arguments, data="photos", model="sd-epsilon"):
        folder = model if model == "fashion" else model_folder(model)
        return call("finetune", tmp_path / data, "--model", folder, "--out", tmp_path / "lora", *FEW, *arguments)

    return finetune


@pytest.fixture(autouse=True)
def photos_here(tmp_path):
    for name, grey in (("cat", 60), ("dog", 190)):
        for i in range(3):
            save(tmp_path / "photos" / name / f"{i}.png", grey, seed=i)


def posterior(call, tmp_path, folder, *arguments):
    photo, labels = tmp_path / "photos/cat/0.png", ("--labels", "cat,dog")
    options = ("--strategy", "fixed:2", "--format", "jsonl", "--device", "cpu")
    _, out, _ = call("classify", photo, "--model", folder, *labels, *options, *arguments)
    return json.loads(out)["scores"]


def test_of_classes(finetune, call, model_folder, tmp_path):
    code, out, err = finetune("--template", "a photo of a {}")
    assert (code, out) == (0, "")
    assert "6 images with 2 different captions" in err
    assert "step 3 of 3" in err
    before = posterior(call, tmp_path, model_folder("sd-epsilon"))
    assert posterior(call, tmp_path, model_folder("sd-epsilon"), "--lora", tmp_path / "lora") != before


def test_of_captions_with_false_ones(finetune, tmp_path):
    rows = [
        {"image": f"photos/{name}/{i}.png", "caption": f"a {name}", "false_captions": ["a pig", "a cow", "a hen"]}
        for name in ("cat", "dog")
        for i in range(3)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, _, err = finetune("--false-column", "false_captions", data="captions.jsonl")
    assert code == 0, err
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()


def test_of_captions(finetune, tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    lines = ["file_name,text"]
    for i in range(3):
        Image.new("L", (20, 20), 80 * i).save(folder / f"{i}.png")
        lines.append(f"{i}.png,grey number {i}")
    (folder / "metadata.csv").write_text("\n".join(lines))
    code, _, err = finetune(data="captioned")
    assert code == 0, err
    assert "3 images with 3 different captions" in err


class TestConfused:
    """On the thirty images that `model` was trained on, ten of each class."""

    def options(self, model, tmp_path):
        return ("--model", model, "--out", tmp_path / "lora", *FEW, "--classes", "dark,grey", "--held-out", 9)

    def test_before_and_after(self, call, model, photos, tmp_path):
        options = (*self.options(model, tmp_path), "--number", 10, "--epochs", 4, "--format", "json")
        code, out, err = call("finetune", photos, *options)
        assert code == 0, err
        assert "10 images with 2 different captions" in err
        pair, everything = map(json.loads, out.splitlines())
        assert (pair["name"], everything["name"], everything["num_images"]) == ("dark, grey", "all classes", 9)
        held_out = load_labelled_images(str(photos)).split(9, seed=0)[1]
        assert pair["num_images"] == int((held_out.labels < 2).sum())
        for lora, when in (((), "before"), (("lora",), "after")):
            clf = DiffusionClassifier.from_pretrained(model, device="cpu", loras=[tmp_path / name for name in lora])
            for gain, among in ((pair, ["dark", "grey"]), (everything, ["dark", "grey", "light"])):
                rows = [i for i, y in enumerate(held_out.labels.tolist()) if held_out.class_names[y] in among]
                found = clf.classify([held_out.images[i, 0].numpy() for i in rows], among)
                truth = [held_out.class_names[held_out.labels[i]] for i in rows]
                share = sum(r.label == name for r, name in zip(found, truth, strict=True)) / len(rows)
                assert gain[when][0] == pytest.approx(share)

    def test_bad_input(self, call, model, model_folder, photos, tmp_path):
        for arguments, message in (
            (("--classes", "dark,pink"), "have no class 'pink'"),
            (("--classes", "dark"), "at least two labels"),
            (("--number", 100), "to train on; 100 were asked for"),
            (("--held-out", 30), "cannot be held out"),
            (("--caption-column", "text"), "takes no captions"),
        ):
            code, _, err = call("finetune", photos, *self.options(model, tmp_path), *arguments)
            assert (code, message in error(err.splitlines()[-1])) == (2, True), err
        lone = ("--model", model_folder("sd-epsilon"), "--out", tmp_path / "x", *FEW, "--number", 3)
        code, _, err = call("finetune", photos, *lone)
        assert (code, "--number and --held-out are for --classes" in error(err.splitlines()[-1])) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("--false-column", "x"), {"model": "fashion"}, "fashion is class-conditional and takes no captions"),
        (("--template", "a cat"), {}, "must hold {} exactly once"),
        (("--rank", 0), {}, "rank must be at least 1; got 0"),
        (("--false-column", "wrong"), {}, "holds images and nothing that describes them"),
        (("--false-column", "label", "--joint", 0), {}, "--false-column gives negatives for --joint"),
        (("--joint", -1), {}, "joint must be at least 0; got -1"),
        ((), {"data": "nothing"}, "nothing"),
    ],
)
def test_bad_input(finetune, arguments, options, message):
    code, _, err = finetune(*arguments, **options)
    assert code == 2
    assert message in error(err.splitlines()[-1])


def test_classes_are_no_captions(finetune):
    for option in ("--caption-column", "--false-column"):
        code, _, err = finetune("--classes", "cat,dog", option, "text")
        assert code == 2
        assert "--classes is for images with labels" in error(err)


def test_classes_that_are_called_by_numbers(finetune, tmp_path):
    """Captions "a 0" and "a 1" are nobody's wish."""
    for name in "01":
        save(tmp_path / "numbers" / name / "0.png", 60)
        save(tmp_path / "numbers" / name / "1.png", 90)
    code, _, err = finetune(data="numbers")
    assert (code, "are numbers, 0, 1" in err) == (2, True)
    code, _, err = finetune("--template", "digit {}", data="numbers")
    assert code == 0, err
