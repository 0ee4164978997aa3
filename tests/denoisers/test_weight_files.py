"""Every tensor of a model's files is used, or the model is rejected with one sentence."""

import json
import re
import shutil
from contextlib import suppress

import pytest
import torch
from builders import edit_json
from contrastive_builders import build
from diffusers import AutoencoderKL, DiffusionPipeline
from ldm import checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from diffusion_classifier.baselines.contrastive import Contrastive
from diffusion_classifier.baselines.encoders import load_encoder
from diffusion_classifier.denoisers import load_denoiser, weight_files
from diffusion_classifier.denoisers.trace import Trace
from diffusion_classifier.errors import InputError
from diffusion_classifier.training.checkpoint import Checkpoint, State

COMPONENTS = [("sd-epsilon", "unet"), ("sd-epsilon", "vae"), ("sd-epsilon", "text_encoder"), ("dit", "transformer")]


def load(folder, **options):
    return load_denoiser(folder, device="cpu", dtype="float32", **options)


@pytest.fixture
def copy(model_folder, tmp_path):
    return lambda name: shutil.copytree(model_folder(name), tmp_path / name)


def rewrite(folder, change):
    (path,) = folder.glob("*.safetensors")
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
    save_file(tensors, path, {"format": "pt"})


def refused(folder, *words, **options):
    with pytest.raises(InputError) as caught:
        load(folder, **options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def matrix(tensors):
    return next(name for name, tensor in tensors.items() if name.endswith("weight") and tensor.ndim == 2)


def float8(tensors, suffix=None):
    """Convert matrices to float8, each with a scale if there is a suffix."""
    found = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448 if suffix else torch.tensor(1.0)
            found[name] = (tensor / scale).to(torch.float8_e4m3fn)
            if suffix:
                found[name.removesuffix("weight") + suffix] = scale
        else:
            found[name] = tensor
    return found


LEFTOVERS = {
    "scales": lambda tensors: float8(tensors, "weight_scale"),
    "comfy": lambda tensors: float8(tensors, "scale_weight"),
    "inverse": lambda tensors: float8(tensors, "weight_scale_inv"),
    "marker": lambda tensors: tensors | {"scaled_fp8": torch.zeros(2)},
    "inputs": lambda tensors: tensors | {f"{matrix(tensors)[:-7]}.input_scale": torch.ones(())},
    "nf4": lambda tensors: tensors | {f"{matrix(tensors)}.quant_state.bitsandbytes__nf4": torch.ones(2).byte()},
    "int8": lambda tensors: tensors | {f"{matrix(tensors)[:-7]}.SCB": torch.ones(2)},
    "gptq": lambda tensors: tensors | {f"{matrix(tensors)[:-7]}.qzeros": torch.ones(2).int()},
    "quanto": lambda tensors: tensors | {f"{matrix(tensors)}._scale": torch.ones(2)},
}


@pytest.mark.parametrize(
    ("name", "component", "leftover"),
    [("sd-epsilon", "unet", leftover) for leftover in LEFTOVERS] + [(*c, "scales") for c in COMPONENTS[1:]],
)
def test_scales_of_quantized_weights_are_not_passed_over(copy, name, component, leftover):
    folder = copy(name)
    rewrite(folder / component, LEFTOVERS[leftover])
    refused(folder, f"{component} has", "does not use", "quantized")


@pytest.mark.parametrize(
    ("name", "component", "dtype"),
    [("sd-epsilon", "unet", dtype) for dtype in (torch.uint8, torch.int32, torch.bool)]
    + [(*c, torch.int8) for c in COMPONENTS],
)
def test_whole_numbers_are_no_weights(copy, name, component, dtype):
    folder = copy(name)
    rewrite(folder / component, lambda tensors: tensors | {(m := matrix(tensors)): (100 * tensors[m]).to(dtype)})
    refused(folder, component, "whole numbers", "quantized")


@pytest.mark.parametrize(("name", "component"), COMPONENTS)
def test_a_layer_more_is_not_left_out(copy, name, component):
    folder = copy(name)
    rewrite(folder / component, lambda tensors: tensors | {f"more.{n}.weight": torch.ones(2) for n in range(5)})
    refused(folder, f"{component} has 5 tensors", "more.0.weight, more.1.weight, more.2.weight and 2 more")


@pytest.mark.parametrize(("name", "component"), COMPONENTS)
def test_float8_without_scales_and_halves_are_cast(copy, name, component):
    """Without scales, float8 is a plain cast: the stored values are the weights."""
    for cast in (float8, lambda tensors: {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}):
        folder = copy(name)
        rewrite(folder / component, cast)
        (path,) = (folder / component).glob("*.safetensors")
        key = matrix(load_file(path))
        found = load(folder)
        modules = {"unet": found._modules.get("network"), "transformer": found._modules.get("transformer")}
        modules |= {"vae": found._modules["vae"], "text_encoder": (getattr(found, "_encoders", None) or [None])[0]}
        tensors = modules[component].state_dict()
        stored = next(tensor for own, tensor in tensors.items() if own.endswith(key.removeprefix("text_model.")))
        torch.testing.assert_close(stored.float(), load_file(path)[key].float(), rtol=0, atol=0)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("embeddings.position_ids", torch.arange(24).view(1, -1)),
        ("vision_model.a.weight", torch.ones(2)),
        ("logit_scale", torch.ones(())),
    ],
)
def test_leftovers_of_clip_are_known(copy, name, tensor):
    folder = copy("sd-epsilon")
    rewrite(folder / "text_encoder", lambda tensors: tensors | {name: tensor})
    load(folder)


def test_older_names_of_an_autoencoder_are_still_read(copy, model_folder):
    folder = copy("sd-epsilon")
    names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))

    def older(tensors):
        found = {}
        for name, tensor in tensors.items():
            for new, old in names:
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
            found[name] = tensor
        return found

    rewrite(folder / "vae", older)
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(load(folder).encode(image), load(model_folder("sd-epsilon")).encode(image))


def shard(folder):
    """Save a U-Net in shards, as diffusers does, and return the shards."""
    network = load(folder).network
    for file in (folder / "unet").glob("*.safetensors"):
        file.unlink()
    network.save_pretrained(folder / "unet", max_shard_size="40KB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    return shards


def test_shards_are_whole(copy):
    folder = copy("sd-epsilon")
    (single,) = (folder / "unet").glob("*.safetensors")
    content = single.read_bytes()
    shards = shard(folder)
    load(folder)
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    whole = json.loads(index.read_text())
    some = {name: file for name, file in whole["weight_map"].items() if file != shards[0].name}
    edit_json(index, weight_map=some)
    refused(folder, "does not list", shards[0].name)
    edit_json(index, weight_map=whole["weight_map"] | {"x": "another.safetensors"})
    refused(folder, "lists files that are missing", "another.safetensors")
    edit_json(index, weight_map=[])
    refused(folder, "index")
    index.write_text(json.dumps(whole))
    single.write_bytes(content)
    refused(folder, "2 sets of weights", single.name, shards[0].name)
    single.unlink()
    shards[1].unlink()
    refused(folder, "not complete", f"of {len(shards):05} shards")


@pytest.mark.parametrize(("name", "component"), COMPONENTS)
def test_of_two_files_none_is_taken(copy, name, component):
    folder = copy(name)
    (path,) = (folder / component).glob("*.safetensors")
    shutil.copy(path, path.with_name("other.safetensors"))
    refused(folder, "2 sets of weights", "other.safetensors", path.name)


@pytest.fixture(scope="module")
def original(model_folder):
    """Tensors of a single-file checkpoint, and the folder with its configs."""
    pipeline = DiffusionPipeline.from_pretrained(model_folder("sd-epsilon"), safety_checker=None)
    return checkpoint(pipeline), model_folder("sd-epsilon")


UNET = "model.diffusion_model.out.2.weight"
EMBEDDING = "model.diffusion_model.time_embed.0.weight"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"model.diffusion_model.out.2.scale_weight": torch.ones(())}, ["out.2.scale_weight", "quantized"]),
        ({"scaled_fp8": torch.zeros(2)}, ["scaled_fp8", "quantized"]),
        ({"model.diffusion_model.fuser.weight": torch.ones(2)}, ["fuser.weight", "1 tensors"]),
        ({"first_stage_model.decoder.up.7.weight": torch.ones(2)}, ["decoder.up.7"]),
        ({"cond_stage_model.transformer.text_model.more.weight": torch.ones(2)}, ["text_model.more"]),
        ({"control_model.weight": torch.ones(2)}, ["control_model"]),
        ({EMBEDDING: torch.ones(32, 8).to(torch.int8)}, ["whole numbers", "time_embed.0"]),
    ],
)
def test_a_checkpoint_of_one_file_is_used_whole(original, tmp_path, extra, words):
    tensors, config = original
    save_file(tensors | extra, tmp_path / "one.safetensors")
    refused(tmp_path / "one.safetensors", "one.safetensors", *words, config=config)


@pytest.mark.parametrize(
    "name",
    [
        "model_ema.decay",
        "model_ema.diffusion_modelx",
        "betas",
        "sqrt_one_minus_alphas_cumprod",
        "posterior_mean_coef1",
        "global_step",
        "first_stage_model.loss.discriminator.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
    ],
)
def test_what_training_leaves_in_checkpoints_is_known(original, tmp_path, name):
    tensors, config = original
    save_file(tensors | {name: torch.arange(3)}, tmp_path / "one.safetensors")
    found, expected = load(tmp_path / "one.safetensors", config=config), load(config)
    assert found.fingerprint() == expected.fingerprint()


def test_a_trace_follows_what_conversions_do():
    tensors = {name: torch.rand(6, 4) for name in "abcd"}
    with Trace(tensors) as trace:
        first, _, last = tensors["a"].chunk(3)
        both = torch.cat([first * 2, tensors["b"].half().float().T.reshape(6, 4)])
        filled = torch.zeros(6, 4)
        filled[:2] = tensors["c"][:2]
        parameter = torch.nn.Parameter(last.T.contiguous())
        plain = torch.ones(6, 4) + 1
    assert trace.names(both) == {"a", "b"}
    assert trace.names(filled) == {"c"}
    assert trace.names(parameter) == {"a"}
    assert trace.names(plain) == set()


@pytest.mark.parametrize(("method", "library"), [*weight_files.LIBRARIES.items(), (None, "bitsandbytes")], ids=str)
def test_a_quantized_model_names_the_library_that_is_missing(copy, monkeypatch, method, library):
    monkeypatch.setattr(weight_files, "_installed", lambda _: False)
    quantized = {"quant_method": method} if method else {"load_in_8bit": True}
    for component in ("unet", "text_encoder"):
        folder = copy("sd-epsilon")
        edit_json(folder / component / "config.json", quantization_config=quantized)
        message = refused(folder, component, f"pip install {library}")
        assert "[t5]" not in message
        shutil.rmtree(folder)


@pytest.mark.parametrize("quantized", ["x", [], {}, {"quant_method": 3}, {"quant_method": "no-such-method"}])
def test_a_quantization_that_is_not_known(copy, quantized):
    folder = copy("sd-epsilon")
    edit_json(folder / "unet" / "config.json", quantization_config=quantized)
    assert "[t5]" not in refused(folder, "quant")


def test_missing_libraries_are_named():
    def said(e):
        return weight_files.missing_library(e)

    assert "pip install nothing_here" in said(ModuleNotFoundError("no", name="nothing_here"))
    assert "[t5]" in said(ImportError("T5Tokenizer requires the SentencePiece library"))
    assert "[t5]" not in said(ImportError("Using this requires Accelerate: `pip install accelerate`"))
    assert "pip install accelerate" in said(ImportError("Using this requires Accelerate: `pip install accelerate`"))


SCALING = {
    "scaling_factor": [None, "x", "0.18", 0, -1, float("nan"), float("inf"), True, [], {}],
    "shift_factor": ["x", float("nan"), True, [0.1]],
    "latents_mean": [[0.0] * 4, [0.0], "x", 1],
    "latents_std": [[1.0] * 4],
    "latent_channels": [None, "4", 0, 4.5],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in SCALING.items() for value in values])
def test_how_latents_are_scaled_is_told_in_numbers(copy, key, value):
    folder = copy("sd-epsilon")
    edit_json(folder / "vae" / "config.json", **{key: value})
    refused(folder, *([] if key == "latent_channels" else [key]))


@pytest.mark.parametrize("std", [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, float("nan")], [1.0] * 5])
def test_latents_that_are_not_brought_to_one_scale(copy, std):
    folder = copy("sd-epsilon")
    edit_json(folder / "vae" / "config.json", latents_mean=[0.0] * 4, latents_std=std)
    refused(folder, "latents_std")


def test_a_scaling_factor_that_is_missing_is_the_default_of_the_class(copy):
    folder = copy("sd-epsilon")
    config = json.loads((folder / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert load(folder)._modules["vae"].config.scaling_factor == AutoencoderKL().config.scaling_factor


@pytest.mark.parametrize(
    ("file", "key"),
    [("tokenizer/tokenizer_config.json", "model_max_length"), ("text_encoder/config.json", "eos_token_id")],
)
def test_values_that_show_in_reading_prompts_are_one_sentence(copy, file, key):
    folder = copy("sd-epsilon")
    edit_json(folder / file, **{key: None})
    denoiser = load(folder)
    for read in (lambda: denoiser.condition(["a cat"]), denoiser.null_condition):
        with pytest.raises(InputError, match=r"cannot read prompts.*model_max_length.*Error: "):
            read()


def test_a_text_encoder_of_another_width(copy):
    folder = copy("sd-epsilon")
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder", hidden_size=8, num_attention_heads=2)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    refused(folder, "reads prompts of 16 numbers a token, and the text encoder makes 8")


def test_a_tokenizer_of_more_words_than_its_encoder(copy):
    denoiser = load(copy("sd-epsilon"))
    denoiser.pipeline.tokenizer.add_tokens(["zebra"])
    with pytest.raises(InputError, match="a tokenizer and its text encoder do not fit each other"):
        denoiser.condition(["zebra"])


CONFIGS = [
    (component, key)
    for component, keys in {
        "unet/config.json": [
            "in_channels",
            "block_out_channels",
            "sample_size",
            "cross_attention_dim",
            "norm_num_groups",
        ],
        "text_encoder/config.json": ["hidden_size", "hidden_act", "vocab_size", "num_hidden_layers", "architectures"],
        "scheduler/scheduler_config.json": ["num_train_timesteps", "beta_start", "beta_schedule", "prediction_type"],
        "model_index.json": ["unet", "vae", "scheduler", "tokenizer", "_class_name"],
        "vae/config.json": ["block_out_channels", "latent_channels", "norm_num_groups", "down_block_types"],
    }.items()
    for key in keys
]


@pytest.mark.parametrize("where", CONFIGS, ids=lambda where: where[1])
def test_values_of_another_kind_are_one_sentence(model_folder, tmp_path, where):
    """A value is usable, or raises InputError; nothing else is raised."""
    folder = shutil.copytree(model_folder("sd-epsilon"), tmp_path / "model")
    for value in (None, "x", -1, [], {}, ["diffusers", None]):
        shutil.copy(model_folder("sd-epsilon") / where[0], folder / where[0])
        edit_json(folder / where[0], **{where[1]: value})
        with suppress(InputError):
            load(folder)


def test_a_contrastive_model_is_used_whole(tmp_path):
    build("clip", tmp_path)
    for damage, message in (
        (lambda tensors: float8(tensors, "weight_scale"), "quantized"),
        (lambda tensors: tensors | {matrix(tensors): tensors[matrix(tensors)].to(torch.int8)}, "whole numbers"),
        (lambda tensors: tensors | {"more.weight": torch.ones(2)}, re.escape("more.weight")),
    ):
        before = (tmp_path / "model.safetensors").read_bytes()
        rewrite(tmp_path, damage)
        with pytest.raises(InputError, match=message):
            Contrastive.from_pretrained(tmp_path, device="cpu")
        (tmp_path / "model.safetensors").write_bytes(before)
    Contrastive.from_pretrained(tmp_path, device="cpu")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="2 sets of weights"):
        Contrastive.from_pretrained(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors | {"weights.more": torch.ones(2)},
        lambda tensors: tensors | {"more": torch.ones(2)},
        lambda tensors: tensors | {"ema.more": torch.ones(2)},
        lambda tensors: tensors | {"weights.bias": torch.ones(1)},  # would be repeated for each of the numbers
        lambda tensors: tensors | {"ema.bias": torch.ones(2).int()},
        lambda tensors: tensors | {"optimizer.exp_avg.bias": torch.ones(3)},
    ],
)
def test_a_training_checkpoint_is_used_whole(tmp_path, damage):
    network = torch.nn.Linear(3, 2)
    weights, run = dict(network.named_parameters()), {"data": "x", "class_names": [], "config": {}}
    ema = {name: parameter.detach().clone() for name, parameter in weights.items()}
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint, state = Checkpoint(tmp_path, run), State(weights, ema, optimizer)
    checkpoint.save(7, state)
    assert checkpoint.load(state) == 7
    rewrite(tmp_path, damage)
    with pytest.raises(InputError, match=r"step-7\.safetensors cannot be used"):
        checkpoint.load(state)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_train_timesteps", None),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", "10"),
        ("beta_start", float("nan")),
        ("beta_end", 3.0),
        ("beta_start", None),
        ("beta_schedule", None),
        ("prediction_type", None),
        ("prediction_type", 1),
    ],
)
def test_a_scheduler_that_states_no_noise(copy, key, value):
    folder = copy("sd-epsilon")
    edit_json(folder / "scheduler" / "scheduler_config.json", **{key: value})
    refused(folder)


def test_words_are_whole(model_folder, tmp_path):
    vector = torch.ones(1, 16)
    cases = [
        ("sd-epsilon", {"<toy>": vector, "<dog>": vector.clone()}, "holds 2 tensors"),
        ("sd-epsilon", {"<toy>": vector * torch.nan}, "not finite"),
        ("sd-epsilon", {"<toy>": vector.to(torch.int8)}, "whole numbers"),
        ("sd-epsilon", {"<toy>": torch.ones(1, 1, 16)}, "shape"),
        ("sd-epsilon", {"<toy>": torch.ones(0, 16)}, "shape"),
        ("sd-epsilon", {"clip_l": vector, "clip_g": vector.clone()}, "text_encoder_2"),
        ("sdxl", {"<toy>": vector}, "text_encoder and text_encoder_2"),
        ("sdxl", {"clip_l": vector, "clip_g": vector.clone(), "x": vector.clone()}, "holds 3 tensors"),
    ]
    for number, (name, tensors, message) in enumerate(cases):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        for source in (path, f"<toy>={path}"):
            with pytest.raises(InputError, match=rf"{number}\.safetensors .*{message}"):
                load(model_folder(name), words=[source])
    with pytest.raises(InputError, match="holds 8 weight files"):
        load(model_folder("sd-epsilon"), words=[tmp_path])


def test_an_encoder_may_leave_a_head_out_and_nothing_else(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    small = {f"decoder_{name}": value for name, value in shape.items()}
    ViTMAEForPreTraining(ViTMAEConfig(**shape, **small, image_size=16, patch_size=8)).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    load_encoder(tmp_path, "hub", device="cpu")
    for name in ("vit.layernorm.weight_scale", "vit.more.weight"):
        before = (tmp_path / "model.safetensors").read_bytes()
        rewrite(tmp_path, lambda tensors, name=name: tensors | {name: torch.ones(2)})
        with pytest.raises(InputError, match="does not use"):
            load_encoder(tmp_path, "hub", device="cpu")
        (tmp_path / "model.safetensors").write_bytes(before)
