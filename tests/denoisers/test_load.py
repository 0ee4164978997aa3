"""Loading rejects unusable models, and runs or unpickles nothing of a model."""

import json
import pickle
import shutil
import warnings
from pathlib import Path

import builders
import huggingface_hub
import pytest
import torch
from builders import BUILDERS, edit_json
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file, save_file
from text_builders import TEXT_BUILDERS

from diffusion_classifier.denoisers import ModelDefaults, load_denoiser
from diffusion_classifier.denoisers.devices import native_bfloat16, resolve_dtype
from diffusion_classifier.denoisers.load import located
from diffusion_classifier.denoisers.text_conditional import TextConditional
from diffusion_classifier.errors import InputError


@pytest.fixture
def copy(model_folder, tmp_path):
    """Return a copy of a pipeline's folder, which a test may damage."""

    def make(name):
        return shutil.copytree(model_folder(name), tmp_path / name)

    return make


class Payload:
    """An object that creates a folder when unpickled, as a hostile file would."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def load(folder, **options):
    return load_denoiser(folder, **{"device": "cpu", "dtype": "float32", **options})


def refused(folder, *words, **options):
    with pytest.raises(InputError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_nothing_there(tmp_path):
    assert "hub" not in refused(tmp_path / "nowhere", "nowhere", "no model")
    refused("nobody/no-such-model", "nobody/no-such-model", "cannot be had from the hub")


def test_a_folder_or_file_that_is_no_pipeline(tmp_path):
    (tmp_path / "file").write_text("x")
    refused(tmp_path, "model_index.json")
    refused(tmp_path / "file", "model_index.json")
    (tmp_path / "model_index.json").write_text("{")
    refused(tmp_path, "model_index.json", "cannot be read")
    (tmp_path / "model_index.json").write_text("[]")
    refused(tmp_path, "model_index.json", "object")


@pytest.mark.parametrize("kind", ["StableDiffusionInpaintPipeline", "Pipeline", None, 3])
def test_unknown_pipeline(copy, kind):
    folder = copy("sd-epsilon")
    edit_json(folder / "model_index.json", _class_name=kind)
    refused(folder, str(kind), "not supported", "DiTPipeline")


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_pickles_are_not_opened(copy, tmp_path, component):
    folder = copy("sd-epsilon")
    (weights,) = (folder / component).glob("*.safetensors")
    weights.unlink()
    name = "pytorch_model.bin" if component == "text_encoder" else "diffusion_pytorch_model.bin"
    (folder / component / name).write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    refused(folder, f"{component} has", "safetensors", "unpickling")
    assert not (tmp_path / "run").exists()


def test_nor_where_only_a_variant_is_in_safetensors(copy):
    folder = copy("class-unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    refused(folder, "unet has weights of the variant fp16 only", "variant")


@pytest.mark.parametrize("sharded", [False, True])
def test_variants_of_weights(model_folder, tmp_path, sharded):
    """Variants are saved by diffusers, in one file or in shards. The autoencoder has none."""
    pipe = DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"), safety_checker=None)
    for name in ("unet", "text_encoder"):
        network = pipe.components[name]
        with torch.no_grad():
            next(network.parameters()).mul_(2)
        options = {"variant": "fp16", **({"max_shard_size": "20KB"} if sharded else {})}
        network.save_pretrained(tmp_path / "m" / name, **options)
    pipe.unet, pipe.text_encoder = None, None
    for name, part in pipe.components.items():
        if part is not None:
            part.save_pretrained(tmp_path / "m" / name)
    shutil.copy(model_folder("sd-epsilon") / "model_index.json", tmp_path / "m")
    assert len(list((tmp_path / "m" / "unet").glob("*.fp16*.safetensors"))) > sharded
    assert len(list((tmp_path / "m" / "text_encoder").glob("*.fp16*.safetensors"))) > sharded
    refused(tmp_path / "m", "of the variant fp16 only")
    found, plain = load(tmp_path / "m", variant="fp16"), load(model_folder("sd-epsilon"))
    for a, b in ((found.network, plain.network), (found._encoders[0], plain._encoders[0])):
        (first, doubled), *others = zip(a.parameters(), b.parameters(), strict=True)
        torch.testing.assert_close(first, 2 * doubled)
        assert all(torch.equal(*pair) for pair in others)
    # Where both are there, the one that is asked for.
    for name in ("unet", "text_encoder"):
        for file in (model_folder("sd-epsilon") / name).iterdir():
            shutil.copy(file, tmp_path / "m" / name)
    for variant, expected in ((None, plain), ("fp16", found)):
        same = load(tmp_path / "m", variant=variant).network.state_dict()
        assert all(torch.equal(same[key], value) for key, value in expected.network.state_dict().items())
    refused(tmp_path / "m", "no weights of the variant 'bf16'", variant="bf16")


def test_an_index_of_a_variant_must_not_name_a_pickle(copy, tmp_path):
    folder = copy("sd-epsilon")
    shard = "model.fp16-00001-of-00001.bin"
    (folder / "text_encoder" / shard).write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16-1-of-1.safetensors")
    index = {"metadata": {}, "weight_map": {"final_layer_norm.bias": shard}}
    (folder / "text_encoder" / "model.safetensors.index.fp16.json").write_text(json.dumps(index))
    refused(folder, "text_encoder", "safetensors", variant="fp16")
    assert not (tmp_path / "run").exists()


def test_an_index_of_shards_must_not_name_a_pickle(copy, tmp_path):
    folder = copy("sd-epsilon")
    shard = "model-00001-of-00001.bin"
    (folder / "text_encoder" / shard).write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"final_layer_norm.bias": shard}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "text_encoder", "safetensors")
    assert not (tmp_path / "run").exists()


def test_a_config_must_not_name_a_pickle(copy):
    folder = copy("sd-epsilon")
    edit_json(folder / "text_encoder" / "config.json", transformers_weights="adapter_model.bin")
    refused(folder, "text_encoder", "safetensors")


CODE = "import pathlib; (pathlib.Path(__file__).parent / 'run').touch()\nclass Own: pass\n"


@pytest.mark.parametrize(
    ("index", "code", "message"),
    [
        ({"_class_name": ["own", "Own"]}, ["own.py"], "needs a pipeline of its own"),
        ({"unet": ["own", "Own"]}, ["unet/own.py"], "needs own.Own"),
        ({"unet": ["os", "PathLike"]}, [], "needs os.PathLike"),
        ({"tokenizer": ["transformers", "AutoTokenizer"]}, [], "needs transformers.AutoTokenizer"),
        ({}, ["unet/diffusers.py"], "unet holds Python code"),
    ],
)
def test_code_of_a_model_is_not_run(copy, index, code, message):
    folder = copy("sd-epsilon")
    edit_json(folder / "model_index.json", **index)
    for name in code:
        (folder / name).write_text(CODE)
    refused(folder, message, "code that comes with a model is not run")
    assert not list(folder.rglob("run"))


def test_weights_that_are_broken_or_of_another_size(copy):
    folder = copy("class-unet")
    (weights,) = (folder / "unet").glob("*.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:1000])
    refused(folder, "cannot be loaded")
    weights.write_bytes(content)
    edit_json(folder / "unet" / "config.json", block_out_channels=[8, 32])
    refused(folder, "cannot be loaded", "shape")


def test_a_component_that_is_missing(copy):
    folder = copy("sd-epsilon")
    shutil.rmtree(folder / "vae")
    refused(folder, "not complete", "vae")


def test_a_unet_for_inpainting(tmp_path):
    builders.stable_diffusion(tmp_path, unet={"in_channels": 9})
    refused(tmp_path, "9 channels", "inpainting")


@pytest.mark.parametrize(
    "unet",
    [
        {"num_class_embeds": 7},
        {"addition_embed_type": "text", "encoder_hid_dim": 16, "addition_embed_type_num_heads": 2},
    ],
)
def test_a_unet_that_needs_more_than_a_prompt(tmp_path, unet):
    builders.stable_diffusion(tmp_path, unet=unet)
    refused(tmp_path, next(iter(unet)), "prompt")


def test_a_transformer_whose_sample_size_is_not_a_number(copy):
    folder = copy("dit")
    edit_json(folder / "transformer" / "config.json", sample_size=None)
    refused(folder, "cannot be loaded", "NoneType")


def test_a_sample_size_that_is_not_a_square(tmp_path):
    builders.stable_diffusion(tmp_path, unet={"sample_size": [8, 12]})
    refused(tmp_path, "sample_size", "12")


def test_an_unconditional_unet(tmp_path):
    unet = UNet2DModel(
        8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    refused(tmp_path, "unconditional")


def test_a_patch_size_or_names_that_do_not_fit(copy):
    folder = copy("class-unet")
    settings = folder / "diffusion_classifier.json"
    for patch_size in (3, 0, "2"):
        edit_json(settings, patch_size=patch_size)
        refused(folder, "patch size", repr(patch_size))
    edit_json(settings, patch_size=2, class_names=["cat", "dog"])
    refused(folder, "2 class names", "4 class")
    folder = copy("dit")
    (folder / "diffusion_classifier.json").write_text(json.dumps({"class_names": ["cat", "dog"]}))
    refused(folder, "2 class names", "11 class")


@pytest.mark.parametrize("size", [None, [8, 8]])
def test_a_class_conditional_unet_that_does_not_state_its_size(copy, size):
    folder = copy("class-unet")
    edit_json(folder / "unet" / "config.json", sample_size=size)
    refused(folder, "sample_size as a whole number")


def test_a_scheduler_of_an_unknown_kind(copy):
    folder = copy("class-unet")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "ScoreSdeVeScheduler"])
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler")
    refused(folder, "ScoreSdeVeScheduler", "not supported")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "cannot be read"),
        ("[1]", "object"),
        ('{"defaults": {"lose": "l1"}}', "lose"),
        ("\udcff", "cannot be read"),
    ],
)
def test_settings_that_cannot_be_used(copy, content, word):
    folder = copy("class-unet")
    (folder / "diffusion_classifier.json").write_bytes(content.encode(errors="surrogateescape"))
    refused(folder, "diffusion_classifier.json", word)


def test_settings_are_taken_over(copy):
    folder = copy("class-unet")
    assert load(folder).defaults == ModelDefaults()
    defaults = {"strategy": "fixed:8", "loss": "l1", "temperature": 0.5}
    edit_json(folder / "diffusion_classifier.json", defaults=defaults, licence="MIT")
    assert load(folder).defaults == ModelDefaults("fixed:8", "l1", "even", 0.5)
    assert load(folder).licence == "MIT"


@pytest.mark.parametrize(
    "settings",
    [
        {"defaults": {"temperature": "x"}},
        {"defaults": {"temperature": True}},
        {"defaults": {"strategy": 3}},
        {"defaults": {"timesteps": None}},
        {"defaults": {"loss": ["l2"]}},
        {"defaults": {"lags": "x"}},
        {"defaults": {"lags": [1, None]}},
        {"defaults": {"classes": [0, 1]}},
        {"defaults": {"weights": 2}},
        {"defaults": {"unknown": 1}},
        {"defaults": 3},
        {"words": 3},
        {"words": ["cat", 3]},
    ],
    ids=str,
)
def test_settings_of_another_kind(copy, settings):
    folder = copy("class-unet")
    edit_json(folder / "diffusion_classifier.json", **settings)
    refused(folder, "diffusion_classifier.json", "cannot be")


def test_devices_and_dtypes_that_do_not_exist(model_folder):
    folder = model_folder("class-unet")
    refused(folder, "int8", "bfloat16", dtype="int8")
    refused(folder, "abacus", device="abacus")
    if not torch.cuda.is_available():
        refused(folder, "cuda", device="cuda")


def test_auto_is_a_dtype_that_the_processor_knows(monkeypatch):
    module = "diffusion_classifier.denoisers.devices.native_bfloat16"
    for native, cpu, cuda in ((True, "bfloat16", "bfloat16"), (False, "float32", "float16")):
        monkeypatch.setattr(module, lambda _device, native=native: native)
        assert resolve_dtype("auto", torch.device("cpu")) == getattr(torch, cpu)
        assert resolve_dtype("auto", torch.device("cuda")) == getattr(torch, cuda)


@pytest.mark.parametrize(
    ("machine", "signs", "expected"),
    [
        ("x86_64", set(), False),
        ("x86_64", {"_is_avx512_bf16_supported"}, True),
        ("AMD64", {"_is_amx_tile_supported"}, True),
        ("aarch64", set(), True),
    ],
)
def test_native_bfloat16(monkeypatch, machine, signs, expected):
    """On x86 the library says yes to AVX-512 alone, too, although it is slower than float32 there."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    for sign in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, sign, lambda sign=sign: sign in signs)
    assert native_bfloat16(torch.device("cpu")) == expected
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # Apple's processors
    assert not native_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("name", [name for name in BUILDERS | TEXT_BUILDERS if "late" not in name])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_component_has_a_dtype_that_it_can_compute_in(name, dtype, model_folder):
    """CLIP and autoencoders have float32, language models that overflow in float16 bfloat16; T5 has the network's."""
    denoiser = load_denoiser(model_folder(name), device="cpu", dtype=dtype)
    parts = {"vae": denoiser._modules.get("vae")}
    if isinstance(denoiser, TextConditional):
        parts |= {n: m for n, m in denoiser.pipeline.components.items() if n.startswith("text_encoder")}
    for part, module in parts.items():
        if module is None:
            continue
        kind = type(module).__name__
        expected = getattr(torch, dtype)
        if kind.startswith(("CLIP", "Autoencoder")):
            expected = torch.float32
        elif kind.startswith(("Gemma", "Qwen")) and dtype == "float16":
            expected = torch.bfloat16
        assert module.dtype == expected, part
    assert denoiser.dtype == getattr(torch, dtype)


def test_what_only_sampling_needs_is_neither_needed_nor_talked_about(copy, capfd, caplog):
    folder = copy("sd-epsilon")
    edit_json(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPFeatureExtractor"],
        requires_safety_checker=True,
    )
    # Old schedulers, which a sampler would be told to correct.
    edit_json(folder / "scheduler" / "scheduler_config.json", clip_sample=True, steps_offset=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(folder, dtype="bfloat16")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "component", "key"),
    [("class-unet", "unet", "conv_out.bias"), ("sd-epsilon", "text_encoder", "final_layer_norm.bias")],
)
def test_missing_weights_are_not_made_up(copy, name, component, key):
    folder = copy(name)
    (path,) = (folder / component).glob("*.safetensors")
    weights = load_file(path)
    del weights[key]
    save_file(weights, path, {"format": "pt"})
    refused(folder, component, key)


@pytest.mark.parametrize("name", ["class-unet", "late-unet"])
def test_a_model_of_the_hub_brings_its_settings(name, model_folder, tmp_path, monkeypatch):
    """The model is in the hub's cache, in the layout of huggingface_hub, because tests use no network."""
    repository = tmp_path / "models--somebody--digits"
    snapshot = shutil.copytree(model_folder(name), repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load("somebody/digits").class_names == ("cat", "dog", "door")

    # The pipeline's own download leaves out what it does not know.
    settings = (snapshot / "diffusion_classifier.json").rename(tmp_path / "settings")

    def download(_repo, name):
        return shutil.copy(settings, snapshot / name) if "classifier" in name else snapshot / name

    monkeypatch.setattr("diffusion_classifier.denoisers.load.hf_hub_download", download)
    assert load("somebody/digits").class_names == ("cat", "dog", "door")


@pytest.mark.parametrize("known_to_be_missing", [True, False])
def test_a_model_of_the_hub_without_settings(model_folder, tmp_path, monkeypatch, recwarn, known_to_be_missing):
    """Without a network, a warning is given unless the cache knows that there are none."""
    repository = tmp_path / "models--somebody--digits"
    snapshot = shutil.copytree(model_folder("sd-epsilon"), repository / "snapshots" / ("0" * 40))
    assert not (snapshot / "diffusion_classifier.json").exists()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    if known_to_be_missing:
        (repository / ".no_exist" / ("0" * 40)).mkdir(parents=True)
        (repository / ".no_exist" / ("0" * 40) / "diffusion_classifier.json").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert load("somebody/digits").defaults == ModelDefaults()
    said = [str(w.message) for w in recwarn if "diffusion_classifier.json" in str(w.message)]
    assert len(said) == (0 if known_to_be_missing else 1)


def test_parts_of_bundled_models(tmp_path, monkeypatch):
    (tmp_path / "zoo" / "part").mkdir(parents=True)
    monkeypatch.setattr("diffusion_classifier.denoisers.load.bundled_models", lambda: {"small": tmp_path / "zoo"})
    monkeypatch.chdir(tmp_path)
    assert located("small") == tmp_path / "zoo"
    assert located("small/part") == tmp_path / "zoo" / "part"
    assert located("small/none") == Path("small/none")  # perhaps a hub id
    assert located("other/part") == Path("other/part")
    (tmp_path / "small" / "part").mkdir(parents=True)
    assert located("small/part") == Path("small/part")  # what is here comes first
