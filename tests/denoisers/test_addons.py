"""LoRA, textual inversion, and single-file checkpoints, compared with the results of diffusers itself."""

import pickle

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from ldm import checkpoint
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from diffusion_classifier.denoisers import addons, load_denoiser, single_file
from diffusion_classifier.errors import InputError

PROMPTS = ["a <toy>", "a dog"]
T = torch.tensor([500])


def load(folder, **options):
    return load_denoiser(folder, device="cpu", dtype="float32", **options)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predict(denoiser, prompts=PROMPTS):
    conditioning = denoiser.condition(prompts)
    noisy = randn(1, *denoiser.latent_shape)
    return denoiser.predict_noise(noisy, T, conditioning, torch.zeros(len(prompts), dtype=torch.int64))


@pytest.fixture(scope="module")
def lora(model_folder, tmp_path_factory):
    """Return LoRA weights for the U-Net of the tiny Stable Diffusion, as training saves them."""
    folder = tmp_path_factory.mktemp("lora")
    unet = StableDiffusionPipeline.from_pretrained(model_folder("sd-epsilon"), safety_checker=None).unet
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder / "pytorch_lora_weights.safetensors"


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 0.5])
def test_lora_weights_change_predictions_as_in_diffusers(model_folder, lora, scale, capfd):
    source = lora if scale is None else f"{lora}@{scale}"
    denoiser = load(model_folder("sd-epsilon"), loras=[source])
    assert capfd.readouterr().err == ""
    pipeline = DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"), safety_checker=None)
    pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    embeds = denoiser.condition(["a dog"]).tensors["prompt_embeds"]
    noisy = randn(1, 4, 8, 8)
    attention = {"scale": 1.0 if scale is None else scale}
    expected = pipeline.unet(noisy, T, encoder_hidden_states=embeds, cross_attention_kwargs=attention).sample
    torch.testing.assert_close(predict(denoiser, ["a dog"]), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(predict(load(model_folder("sd-epsilon")), ["a dog"]), expected, rtol=1e-2)
    names = {name for name, _ in denoiser.network.named_parameters()}
    assert names == {name for name, _ in load(model_folder("sd-epsilon")).network.named_parameters()}  # folded in


def test_lora_weights_that_cannot_be_added(model_folder, lora, tmp_path, monkeypatch):
    (tmp_path / "x.bin").write_bytes(pickle.dumps({}))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    for source, message in (
        (tmp_path / "x.bin", "no safetensors file"),
        (tmp_path / "nowhere.safetensors", "there is no file or folder .*nowhere.safetensors"),
        ("lroa", "there is no file or folder 'lroa'"),
        (tmp_path / "other.safetensors", "other.safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            load(model_folder("sd-epsilon"), loras=[source])
    with pytest.raises(InputError, match=r"32 tensors that the network does not use \(unet"):
        load(model_folder("dit"), loras=[lora])
    with pytest.raises(InputError, match="PixArtSigmaPipeline takes no LoRA"):
        load(model_folder("pixart"), loras=[lora])
    with pytest.raises(InputError, match=r"pytorch_lora_weights\.safetensors"):
        load(model_folder("sd3"), loras=[lora])
    monkeypatch.setattr(addons, "is_peft_available", lambda: False)
    with pytest.raises(InputError, match="need peft"):
        load(model_folder("sd-epsilon"), loras=[lora])


@torch.no_grad()
@pytest.mark.parametrize(("key", "source"), [("<toy>", "{}"), ("emb_params", "<toy>={}"), ("<x>", "<toy>={}")])
def test_a_learned_word_is_read_as_in_diffusers(model_folder, tmp_path, key, source):
    path = tmp_path / "toy.safetensors"
    save_file({key: randn(2, 16)}, path)
    denoiser = load(model_folder("sd-epsilon"), words=[source.format(path)])
    pipeline = DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"), safety_checker=None)
    pipeline.load_textual_inversion(randn(2, 16), token="<toy>")
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    torch.testing.assert_close(denoiser.condition(PROMPTS).tensors["prompt_embeds"], expected)
    plain = load(model_folder("sd-epsilon")).condition(PROMPTS).tensors["prompt_embeds"]
    assert not torch.allclose(plain[0], expected[0])
    torch.testing.assert_close(plain[1], expected[1])


@torch.no_grad()
def test_a_learned_word_of_sdxl_is_for_both_encoders(model_folder, tmp_path):
    path = tmp_path / "toy.safetensors"
    save_file({"clip_l": randn(1, 16), "clip_g": randn(1, 16, seed=1)}, path)
    denoiser = load(model_folder("sdxl"), words=[f"<toy>={path}"])
    pipeline = denoiser.pipeline
    for i, (tokens, encoder) in enumerate(
        ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
    ):
        index = tokens.convert_tokens_to_ids("<toy>")
        assert index != tokens.unk_token_id
        assert torch.equal(encoder.get_input_embeddings().weight[index], randn(1, 16, seed=i)[0])


def test_learned_words_that_cannot_be_added(model_folder, tmp_path):
    save_file({"<toy>": torch.zeros(1, 7)}, tmp_path / "toy.safetensors")
    (tmp_path / "toy.pt").write_bytes(pickle.dumps({}))
    for name, source, message in (
        ("sd-epsilon", tmp_path / "toy.safetensors", "toy.safetensors cannot be added .* shape"),
        ("sd-epsilon", tmp_path / "toy.pt", "no safetensors file"),
        ("sd-epsilon", "<toy>=nowhere.safetensors", "there is no file or folder 'nowhere.safetensors'"),
        ("dit", tmp_path / "toy.safetensors", "DiTPipeline takes no learned words"),
    ):
        with pytest.raises(InputError, match=message):
            load(model_folder(name), words=[source])


@pytest.fixture(scope="module")
def one_file(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "sd.safetensors"
    save_file(checkpoint(DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"), safety_checker=None)), path)
    return path


def test_a_checkpoint_of_one_file_is_the_same_model(model_folder, one_file):
    one, folder = load(one_file, config=model_folder("sd-epsilon")), load(model_folder("sd-epsilon"))
    torch.testing.assert_close(predict(one, ["a dog"]), predict(folder, ["a dog"]))
    image = randn(1, 3, 16, 16)
    torch.testing.assert_close(one.encode(image), folder.encode(image))


def test_a_damaged_checkpoint(model_folder, one_file, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    tensors = load_file(one_file)
    lacking = dict(tensors)
    del lacking["model.diffusion_model.out.2.bias"]
    save_file(lacking, tmp_path / "lacking.safetensors")
    headless = {name: value for name, value in tensors.items() if not name.startswith("cond_stage_model")}
    save_file(headless, tmp_path / "headless.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(one_file.read_bytes()[:1000])
    (tmp_path / "sd.ckpt").write_bytes(pickle.dumps({}))
    (tmp_path / "SD.SAFETENSORS").write_bytes(pickle.dumps({}))  # diffusers would unpickle it
    config = model_folder("sd-epsilon")
    for name, message in (
        ("lacking.safetensors", "lacks some of the weights of its unet"),
        ("headless.safetensors", "CLIPTextModel"),
        ("cut.safetensors", "cut.safetensors cannot be"),
        ("sd.ckpt", "nor a .safetensors file"),
        ("SD.SAFETENSORS", r"rename .*SD\.SAFETENSORS to SD\.safetensors"),
    ):
        with pytest.raises(InputError, match=message):
            load(tmp_path / name, config=config)
    with pytest.raises(InputError, match="for a checkpoint of one file"):
        load(config, config=config)
    with pytest.raises(InputError, match="cannot be had from the hub"):
        load(one_file)  # a Stable Diffusion 1 by its tensors, whose configs are not here
    monkeypatch.setattr(single_file, "is_accelerate_available", lambda: False)
    with pytest.raises(InputError, match="accelerate, which is missing"):
        load(one_file, config=config)


def test_a_model_that_lists_its_words_knows_learned_ones(tmp_path):
    save_file({"<zorp>": randn(1, 128)}, tmp_path / "zorp.safetensors")
    denoiser = load("scenes", words=[tmp_path / "zorp.safetensors"])
    denoiser.condition(["a bag", "a <zorp>"])
    with pytest.raises(InputError, match="'zorp', which this model was not trained with"):
        load("scenes").condition(["a bag", "a <zorp>"])
