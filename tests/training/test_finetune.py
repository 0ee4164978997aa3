import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion_classifier import DiffusionClassifier, load_denoiser
from diffusion_classifier.data.images import load_image, preprocess
from diffusion_classifier.denoisers.addons import with_scale
from diffusion_classifier.diffusion.prediction import to_noise
from diffusion_classifier.errors import InputError
from diffusion_classifier.tasks.scene_tasks import open_nouns
from diffusion_classifier.training.confusable_classes import confusable_images
from diffusion_classifier.training.denoising import TrainConfig, draw_times
from diffusion_classifier.training.finetuning import IndexedCaptions, finetune
from diffusion_classifier.training.images import TrainingCaptions, TrainingImages
from diffusion_classifier.training.joint import START
from diffusion_classifier.training.loop import batch_rows, generator_of

PLAIN = TrainConfig(epochs=2, batch_size=4, warmup=0, learning_rate=1e-2, label_dropout=0.0, ema=0.0)
JOINT = replace(PLAIN, joint=0.3, rivals=1)
T = torch.tensor([3, 500, 999])


def load(folder, **options):
    return load_denoiser(folder, device="cpu", dtype="float32", **options)


def images(denoiser, contrasts=True, n=8):
    """Return grey images of three brightnesses."""
    size, which = denoiser.image_size, torch.arange(n) % 3
    noise = torch.randint(-30, 31, (n, 3, size, size), generator=torch.Generator().manual_seed(0))
    captions = ("dark", "grey", "light")
    return TrainingCaptions(
        (40 + 80 * which.view(-1, 1, 1, 1) + noise).to(torch.uint8),
        tuple(captions[i] for i in which),
        tuple((captions[i - 1], "a dog") for i in which) if contrasts else (),
    )


def of_classes(denoiser, n=8):
    """Return images of the model's first three classes."""
    data = images(denoiser, contrasts=False, n=n)
    names = dict(zip(("dark", "grey", "light"), denoiser.class_names[:3], strict=True))
    return replace(data, captions=tuple(names[c] for c in data.captions))


def predict(denoiser, prompts=("dark", "grey", "light")):
    noisy = torch.randn(len(T), *denoiser.latent_shape, generator=torch.Generator().manual_seed(0))
    return denoiser.predict_noise(noisy, T, denoiser.condition(prompts), torch.arange(3))


@pytest.mark.parametrize("name", ["sd-epsilon", "sd-v", "sdxl", "sd3", "flux-dev"])
@pytest.mark.parametrize("contrasts", [True, False])
def test_the_loss_is_that_of_a_plain_loop(name, contrasts, model_folder, tmp_path):
    config, denoiser = replace(JOINT, epochs=0.1), load(model_folder(name))
    data, losses = images(denoiser, contrasts), []
    finetune(data, denoiser, config, tmp_path, mixed_precision=False, on_step=lambda p: losses.append(p.loss))

    plain = load(model_folder(name))
    generator, rows = generator_of(0, 1, 0), batch_rows(0, len(data), 4, 0)
    kind = plain.prediction_type
    t = draw_times(4, replace(config, objective=kind, times=plain.times), plain.schedule, generator)
    noise = torch.randn(4, *plain.latent_shape, generator=generator)
    indexed = IndexedCaptions.of(data)
    names = indexed.names
    rivals, _, _ = indexed.draw_negatives(rows, config.rivals, generator)
    denoising, entropies = [], []
    for i, row in enumerate(rows.tolist()):
        alpha, sigma = (float(a) for a in plain.schedule(t[i]))
        x = plain.encode(data.images[row : row + 1].float() / 127.5 - 1)[0].half().float()
        noisy = alpha * x + sigma * noise[i]
        goal = {"epsilon": noise[i], "v_prediction": alpha * noise[i] - sigma * x, "flow": noise[i] - x}[kind]
        errors = []
        for caption in (data.captions[row], names[rivals[i, 0]]):
            with torch.no_grad():
                output = plain.forward(noisy[None], t[i : i + 1], plain.condition([caption]))[0]
            alphas = (torch.tensor([a]) for a in (alpha, sigma))
            errors.append(float((to_noise(output[None], noisy[None], *alphas, kind) - noise[i]).square().mean()))
            if caption == data.captions[row]:
                denoising.append(float((output - goal).square().mean()))
        if contrasts:
            assert names[rivals[i, 0]] in data.contrasts[row]
        # One of two others, either way.
        entropies.append(math.log1p(2 * math.exp(START * (errors[0] - errors[1]))))
    assert losses[-1] == pytest.approx(np.mean(denoising) + 0.3 * np.mean(entropies), rel=1e-3)


@pytest.mark.parametrize("name", ["sd-v", "sdxl", "sd3", "flux-dev", "lumina2"])
def test_what_is_saved_is_loaded_as_lora_weights(name, model_folder, tmp_path):
    denoiser = load(model_folder(name))
    before = predict(denoiser)
    finetune(images(denoiser), denoiser, JOINT, tmp_path, mixed_precision=False)
    after = predict(load(model_folder(name), loras=[tmp_path]))
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, predict(denoiser), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["class-unet", "late-unet", "dit", "late-dit"])
def test_models_of_classes_are_adapted(name, model_folder, tmp_path):
    denoiser = load(model_folder(name))
    names = denoiser.class_names[:3]
    before = predict(denoiser, names)
    finetune(of_classes(denoiser), denoiser, replace(JOINT, learning_rate=1e-3), tmp_path, mixed_precision=False)
    after = predict(load(model_folder(name), loras=[tmp_path]), names)
    assert not torch.allclose(before, after, atol=1e-3)
    torch.testing.assert_close(after, predict(denoiser, names), rtol=1e-3, atol=1e-4)
    nothing = predict(load(model_folder(name), loras=[f"{tmp_path}@0"]), names)
    torch.testing.assert_close(nothing, before, rtol=1e-4, atol=1e-5)


def test_adapters_of_other_networks_are_refused(model_folder, tmp_path):
    denoiser = load(model_folder("class-unet"))
    finetune(of_classes(denoiser), denoiser, replace(PLAIN, learning_rate=1e-3), tmp_path, mixed_precision=False)
    with pytest.raises(InputError, match="tensors that the network does not use"):
        load(model_folder("dit"), loras=[tmp_path])
    for content in (b"", b"nothing"):
        (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(content)
        with pytest.raises(InputError, match="cannot be added as LoRA weights"):
            load(model_folder("class-unet"), loras=[tmp_path])


def test_killed_and_resumed_equals_undisturbed(model_folder, tmp_path):
    class Killed(BaseException):
        pass

    def kill(p):
        if p.stage == "" and p.step == 3:
            raise Killed

    def run(out, config=PLAIN, **options):
        denoiser = load(model_folder("sd-epsilon"))
        finetune(images(denoiser), denoiser, config, out, checkpoint_every=2, **options)
        return predict(denoiser)

    with pytest.raises(Killed):
        run(tmp_path / "killed", on_step=kill)
    assert torch.equal(run(tmp_path / "killed"), run(tmp_path / "undisturbed"))
    with pytest.raises(InputError, match="learning_rate"):
        run(tmp_path / "killed", replace(PLAIN, learning_rate=1e-3))


@pytest.mark.slow
def test_captions_come_to_be_told_apart_otherwise(tmp_path):
    """Tests on photographs that were not trained on: the bundled model learns to call a bag a dress."""
    source, captions = open_nouns(), ("a bag", "a dress")
    shown = [[i for i, y in enumerate(source.labels) if source.class_names[y] == c[2:]] for c in captions]

    def called_first(classifier):
        pictures = [source.read(i) for kind in shown for i in kind[20:28]]
        return [r.label == captions[0] for r in classifier.classify(pictures, captions, strategy="fixed:8")]

    options = {"device": "cpu", "dtype": "float32"}
    assert called_first(DiffusionClassifier.from_pretrained("scenes", **options)) == [True] * 8 + [False] * 8
    pixels = [preprocess(load_image(source.read(i)).image, 56) for kind in shown for i in kind[:20]]
    data = TrainingCaptions(
        ((torch.stack(pixels) + 1) * 127.5).to(torch.uint8), (captions[1],) * 20 + (captions[0],) * 20
    )
    config = replace(JOINT, epochs=16, batch_size=8, learning_rate=5e-3)
    finetune(data, load_denoiser("scenes", **options), config, tmp_path)
    adapted = called_first(DiffusionClassifier.from_pretrained("scenes", loras=[tmp_path], **options))
    assert sum(adapted[:8]) <= 1
    assert sum(adapted[8:]) >= 7


@pytest.mark.parametrize(
    ("name", "captions", "options", "message"),
    [
        ("sd-epsilon", ("a cat", "a dog"), {"rank": 0}, "at least 1; got 0"),
        ("sd-epsilon", ("a cat", "a cat"), {}, "nothing to tell apart"),
        ("sd-epsilon", ("a cat", "a" * 50), {}, "tokens"),
        ("pixart", ("a cat", "a dog"), {}, "PixArtSigmaPipeline is not fine-tuned"),
    ],
)
def test_bad_input(name, captions, options, message, model_folder, tmp_path):
    denoiser = load(model_folder(name))
    size = denoiser.image_size
    data = TrainingCaptions(torch.zeros(2, 3, size, size, dtype=torch.uint8), captions)
    with pytest.raises(InputError, match=message):
        finetune(data, denoiser, JOINT, tmp_path, **options)


def test_confused_classes_are_told_from_each_other_alone():
    labels = torch.arange(12) % 3
    data = TrainingImages(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), labels, ("cat", "dog", "cow"))
    some = confusable_images(data, ["cow", "CAT"], ["a cat", "a dog", "a cow"], 5, 0)
    assert set(zip(some.captions, some.contrasts, strict=True)) == {("a cat", ("a cow",)), ("a cow", ("a cat",))}
    assert len(some) == 5


def test_every_false_caption_counts_however_few_another_image_has():
    contrasts = [torch.arange(2, 12), torch.tensor([3])]
    captions = IndexedCaptions([*"abcdefghijkl"], torch.tensor([0, 1]), contrasts)
    generator = torch.Generator().manual_seed(0)
    drawn, absent, counts = captions.draw_negatives(torch.tensor([1, 0]), 0, generator)
    assert drawn[0].tolist() == [3] * 10
    assert sorted(drawn[1].tolist()) == list(range(2, 12))
    assert absent.sum(1).tolist() == [9, 0]
    assert counts.tolist() == [2, 11]
    drawn, absent, counts = captions.draw_negatives(torch.tensor([1, 0]), 3, generator)
    assert (len({*drawn[1].tolist()}), absent.sum(1).tolist(), counts.tolist()) == (3, [2, 0], [2, 11])


def test_weights_of_others_are_not_replaced(model_folder, tmp_path):
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"mine")
    model = load(model_folder("sd-epsilon"))
    with pytest.raises(InputError, match="holds weights that no fine-tuning here made"):
        finetune(images(model), model, PLAIN, tmp_path)
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == b"mine"


def test_gradients_are_not_lost_to_float16(model_folder, tmp_path):
    model = load_denoiser(model_folder("sd-epsilon"), device="cpu", dtype="float16")
    with pytest.raises(InputError, match="gradients vanish in float16"):
        finetune(images(model), model, PLAIN, tmp_path / "out")


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    (tmp_path / "lora@0.02").mkdir()
    assert with_scale(str(tmp_path / "lora@0.02")) == (str(tmp_path / "lora@0.02"), 1.0)
    assert with_scale("style@0.8") == ("style", 0.8)
    assert with_scale("a@b") == ("a@b", 1.0)
    with pytest.raises(InputError, match="must be finite"):
        with_scale("style@nan")
