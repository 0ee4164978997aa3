import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import error, save
from PIL import Image
from transformers import AutoModelForImageClassification

from diffusion_classifier.baselines.load import kind_of
from diffusion_classifier.baselines.supervised import Supervised
from diffusion_classifier.data.images import load_image
from diffusion_classifier.data.labelled import LabelledSource
from diffusion_classifier.errors import InputError
from diffusion_classifier.training import supervised
from diffusion_classifier.training.images import TrainingImages, decode
from diffusion_classifier.training.supervised import SupervisedConfig, augmented, resolution, train_supervised

CONFIG = SupervisedConfig(epochs=4, batch_size=8, warmup=2, ema=0.9, augment="flips")
NAMES = ("dark", "grey", "light")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Make the networks a few channels wide."""
    for name, kind in supervised._RESNETS.items():
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
        monkeypatch.setitem(supervised._RESNETS, name, kind | sizes)
    monkeypatch.setitem(supervised._VITS, "vit-tiny", 64)
    monkeypatch.setattr(supervised, "_STATISTICS", 3)


def test_networks_have_as_many_parameters_as_published(monkeypatch):
    """He et al. 2016 and Dosovitskiy et al. 2021, by way of PyTorch's model zoo and of Touvron et al. 2021."""
    monkeypatch.undo()
    names = tuple(map(str, range(1000)))
    data = TrainingImages(torch.zeros(1, 1, 224, 224, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), names)
    counts = {
        "resnet-18": 11_689_512, "resnet-34": 21_797_672, "resnet-50": 25_557_032, "resnet-101": 44_549_160,
        "vit-tiny": 5_717_416, "vit-small": 22_050_664, "vit-base": 86_567_656,
    }  # fmt: skip
    with torch.device("meta"):
        for name, count in counts.items():
            network = supervised.build_classifier(SupervisedConfig(architecture=name), data)
            assert sum(p.numel() for p in network.parameters()) == count


def toy(n, size=14, seed=0):
    """Return images of three classes, which differ in brightness and alternate."""
    labels = torch.arange(n) % 3
    noise = torch.randint(-30, 31, (n, 1, size, size), generator=torch.Generator().manual_seed(seed))
    return TrainingImages((40 + 80 * labels.view(-1, 1, 1, 1) + noise).to(torch.uint8), labels, NAMES)


@pytest.mark.parametrize("architecture", ["resnet-18", "resnet-50", "vit-tiny"])
def test_a_trained_network_is_one_of_the_hubs(architecture, tmp_path):
    told = []
    config = replace(CONFIG, architecture=architecture, epochs=12)
    out = train_supervised(
        toy(24), config, tmp_path, validation=toy(12, seed=1), on_validation=lambda _, values: told.append(values)
    )
    assert kind_of(out) == "supervised"
    model = Supervised.from_pretrained(out, device="cpu")
    assert model.class_names == NAMES
    assert model.image_size == resolution(architecture, 14) == (14 if architecture == "vit-tiny" else 56)
    fresh = toy(12, seed=1)
    pictures = [Image.fromarray(image[0].numpy()).convert("RGB") for image in fresh.images]
    logits = torch.stack([model.logits(picture) for picture in pictures])
    right = float((logits.argmax(1) == fresh.labels).float().mean())
    assert right == told[-1]["accuracy"] >= 11 / 12
    scored = model.logits_for(["light", "dark"])(pictures[0], [1, 0])
    torch.testing.assert_close(scored, logits[0, [0, 2]])
    # By transformers alone, of the very pixels that training saw.
    x = torch.nn.functional.interpolate(
        fresh.images.float().expand(-1, 3, -1, -1) / 127.5 - 1, size=model.image_size, mode="bilinear"
    )
    with torch.no_grad():
        own = AutoModelForImageClassification.from_pretrained(out).eval()(x).logits
    torch.testing.assert_close(logits, own, rtol=0.05, atol=0.05)  # a picture is enlarged in whole shades of grey


def test_killed_and_resumed_equals_undisturbed(tmp_path):
    class Killed(BaseException):
        pass

    def kill(p):
        if p.step == 5:
            raise Killed

    def run(out, config=CONFIG, **options):
        train_supervised(toy(24), config, out, checkpoint_every=2, **options)
        return Supervised.from_pretrained(out, device="cpu").model.state_dict()

    with pytest.raises(Killed):
        run(tmp_path / "killed", on_step=kill)
    went_on, undisturbed = run(tmp_path / "killed"), run(tmp_path / "undisturbed")
    assert all(torch.equal(value, undisturbed[name]) for name, value in went_on.items())
    with pytest.raises(InputError, match="augment"):
        run(tmp_path / "killed", replace(CONFIG, augment="none"))


def test_augmented_images_are_mirrored_and_moved():
    images = torch.randint(1, 256, (40, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(augmented(images, "none", generator), images)
    found, moves, mirrored = augmented(images, "usual", generator), set(), set()
    for shown, image in zip(found[:, 0], images[:, 0], strict=True):
        ways = []
        for mirror in (False, True):
            picture = image.flip(-1) if mirror else image
            for dy in range(-2, 3):
                for dx in range(-2, 3):
                    expected = torch.zeros_like(picture)
                    for y in range(16):
                        for x in range(16):
                            if 0 <= y + dy < 16 and 0 <= x + dx < 16:
                                expected[y, x] = picture[y + dy, x + dx]
                    if torch.equal(expected, shown):
                        ways.append((mirror, dy, dx))
        ((mirror, dy, dx),) = ways
        moves.add((dy, dx))
        mirrored.add(mirror)
    assert len(moves) > 12
    assert mirrored == {False, True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "alexnet"}, "architecture 'alexnet' is not one of resnet-18"),
        ({"augment": "much"}, "augment 'much' is not one of none, flips, usual"),
        ({"optimizer": "sgd"}, "optimizer 'sgd'"),
        ({"epochs": 0}, "epochs must be above 0; got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0; got -1"),
        ({"epochs": float("inf")}, "epochs must be finite; got inf"),
    ],
)
def test_unfit_values_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SupervisedConfig(**settings)


def test_what_is_refused_leaves_the_model_as_it_was(tmp_path):
    train_supervised(toy(6), CONFIG, tmp_path)
    before = (tmp_path / "preprocessor_config.json").read_text()
    with pytest.raises(InputError, match="other images"):
        train_supervised(toy(6, size=42), CONFIG, tmp_path)
    assert (tmp_path / "preprocessor_config.json").read_text() == before


@pytest.mark.parametrize("architecture", ["vit-tiny", "resnet-18"])
def test_photographs_are_seen_as_in_training(architecture, tmp_path):
    """All images are resized in the same way, whatever their size."""
    rng = np.random.default_rng(0)
    photo = np.full((300, 500, 3), 200, np.uint8)
    photo[:, 100:400] = rng.integers(0, 256, (300, 300, 3))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    source = LabelledSource("photo", ("a",), (0,), ("0",), lambda _: tmp_path / "photo.png")
    data = replace(toy(6, size=28), images=decode(source, 28)[0].expand(6, -1, -1, -1))
    train_supervised(data, replace(CONFIG, architecture=architecture, epochs=0.1), tmp_path / "m")
    model = Supervised.from_pretrained(tmp_path / "m", device="cpu", dtype="float32")
    x = data.images[:1].float() / 127.5 - 1
    if model.image_size > 28:
        x = torch.nn.functional.interpolate(x, size=model.image_size, mode="bilinear")
    with torch.no_grad():
        expected = model.model(pixel_values=x).logits[0]
    found = model.logits(load_image(tmp_path / "photo.png").image)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)  # Pillow rounds; squashed, they differ by 7


def test_images_that_cannot_be_cut_are_refused(tmp_path):
    with pytest.raises(InputError, match="images of 16 pixels cannot be cut into 7 × 7"):
        train_supervised(toy(6, size=16), replace(CONFIG, architecture="vit-tiny"), tmp_path)


class TestCommand:
    @pytest.fixture
    def photos(self, tmp_path):
        for name, grey in zip(NAMES, (40, 120, 200), strict=True):
            for i in range(6):
                save(tmp_path / "photos" / name / f"{i}.png", grey, seed=i)
        return tmp_path / "photos"

    @pytest.fixture
    def model(self, call, photos, tmp_path):
        few = ("--epochs", 30, "--batch-size", 6, "--warmup", 1, "--validation", 6, "--device", "cpu", "--ema", 0.5)
        code, out, err = call("baseline", "supervised", photos, "--out", tmp_path / "model", *few)
        assert (code, out) == (0, "")
        assert "12 training and 6 validation images of 3 classes" in err
        return tmp_path / "model"

    def test_trained_and_evaluated(self, call, photos, model, tmp_path):
        evaluate = ("evaluate", photos, "--out", tmp_path / "run", "--model", model)
        code, out, _ = call(*evaluate, "--device", "cpu")
        assert (code, "18 of 18" in out) == (0, True)
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["accuracy"][0] > 0.9
        for given, message in (
            (("--strategy", "fixed:3"), "is a supervised model, which has no use for --strategy"),
            (("--template", "a {}"), "is a supervised model, which has no use for --template"),
            (("--class-names", "a,b,c"), "'a', which the model does not know"),
        ):
            code, _, err = call(*evaluate[:3], tmp_path / "other", "--model", model, *given)
            assert code == 2
            assert message in error(err)
        code, _, err = call("evaluate", "scenes-winoground", "--out", tmp_path / "w", "--model", model, "--limit", 2)
        assert code == 2
        assert "knows classes and reads no captions" in error(err.splitlines()[-1])
