"""Fine-tuning by the command line, and its LoRA weights in use."""

import json

import pytest
from commands import error, save
from PIL import Image

FEW = ("--epochs", 1, "--batch-size", 2, "--joint", 0.3, "--device", "cpu", "--learning-rate", 0.05, "--ema", 0)


@pytest.fixture
def finetune(call, model_folder, tmp_path):
    def finetune(*arguments, data="photos", model="sd-epsilon"):
        folder = model if model == "fashion" else model_folder(model)
        return call("finetune", tmp_path / data, "--model", folder, "--out", tmp_path / "lora", *FEW, *arguments)

    return finetune


@pytest.fixture(autouse=True)
def photos(tmp_path):
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


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {"model": "fashion"}, "fashion reads no text"),
        (("--template", "a cat"), {}, "must hold {} exactly once"),
        (("--rank", 0), {}, "rank must be at least 1; got 0"),
        (("--false-column", "wrong"), {}, "no column of true captions"),
        (("--false-column", "label", "--joint", 0), {}, "--false-column is for --joint"),
        (("--joint", -1), {}, "joint must be at least 0; got -1"),
        ((), {"data": "nothing"}, "nothing"),
    ],
)
def test_bad_input(finetune, arguments, options, message):
    code, _, err = finetune(*arguments, **options)
    assert code == 2
    assert message in error(err.splitlines()[-1])
