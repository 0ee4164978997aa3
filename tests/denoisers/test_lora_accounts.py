"""LoRA weights are added in full, as by a plain sum, or rejected with the names of the tensors."""

import re

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffusion_classifier.denoisers import load_denoiser
from diffusion_classifier.denoisers.class_lora import adapt_network, save_adapter
from diffusion_classifier.errors import InputError

RANK = 2
PIPELINES = ("sd-epsilon", "sdxl", "sd3", "flux-dev", "sana", "lumina2", "z-image")
MODULES = ["to_q", "to_k", "to_v", "to_out.0"]


def load(folder, **options):
    return load_denoiser(folder, device="cpu", dtype="float32", **options)


def part(denoiser):
    return "unet" if "unet" in denoiser.pipeline.components else "transformer"


def matrices(network, modules=MODULES):
    """Return random LoRA matrices for a network: name → tensor, in peft's naming."""
    torch.manual_seed(0)
    network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules, init_lora_weights=False))
    return {name: tensor.clone().contiguous() for name, tensor in get_peft_model_state_dict(network).items()}


def peft(layers, prefix, _alpha):
    return {f"{prefix}.{name}": tensor for name, tensor in layers.items()}


def older(layers, prefix, _alpha):
    """Rename matrices as diffusers wrote them before it used peft."""
    names = {"lora_A": "lora.down", "lora_B": "lora.up"}
    return {f"{prefix}.{re.sub('lora_[AB]', lambda m: names[m[0]], n)}": t for n, t in layers.items()}


def kohya(layers, prefix, alpha):
    found = {}
    start = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[prefix]
    for name, tensor in layers.items():
        layer, matrix = name.split(".lora_")
        layer = start + layer.replace(".", "_")
        found[f"{layer}.lora_{'down' if matrix == 'A.weight' else 'up'}.weight"] = tensor
        found[f"{layer}.alpha"] = torch.tensor(alpha(name))
    return found


def summed(network, layers, alpha=lambda _: float(RANK)):
    """Add the change of each layer to its weight."""
    with torch.no_grad():
        for name, down in layers.items():
            if "lora_A" in name:
                up = layers[name.replace("lora_A", "lora_B")]
                change = up.flatten(1) @ down.flatten(1) * alpha(name) / RANK
                weight = network.get_submodule(name.split(".lora_")[0]).weight
                weight += change.view(weight.shape)
    return network


def assert_same(network, expected):
    for (name, found), other in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def layers(model_folder):
    return matrices(load(model_folder("sd-epsilon")).network)


@pytest.mark.parametrize("style", [peft, older, kohya])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_all_styles_of_names_are_a_plain_sum(model_folder, layers, tmp_path, style, alpha):
    path = tmp_path / "style.safetensors"
    save_file(style(layers, "unet", lambda _: alpha), path)
    expected = summed(load(model_folder("sd-epsilon")).network, layers, lambda _: alpha if style is kohya else RANK)
    assert_same(load(model_folder("sd-epsilon"), loras=[path]).network, expected)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_family_takes_all_or_nothing(model_folder, tmp_path, name):
    denoiser = load(model_folder(name))
    kind, own = part(denoiser), matrices(denoiser.network)
    path = tmp_path / "own.safetensors"
    save_file(peft(own, kind, None), path)
    assert_same(load(model_folder(name), loras=[path]).network, summed(load(model_folder(name)).network, own))
    first = min(own)
    other = {n.replace(first.split(".lora_")[0], "nowhere.layer"): t for n, t in own.items()}
    save_file(peft(other, kind, None), path)
    with pytest.raises(InputError, match=r"own\.safetensors has 2 tensors that .* does not use .*nowhere\.layer"):
        load(model_folder(name), loras=[path])


def renamed(tensors):
    return {name.replace("down_blocks", "xx_blocks"): tensor for name, tensor in tensors.items()}


def without(*words):
    return lambda tensors: {n: t for n, t in tensors.items() if not all(w in n for w in words)}


def changed(change, pick=max):
    def make(tensors):
        name = pick(n for n in tensors if "alpha" not in n)
        return tensors | {name: change(tensors[name])}

    return make


def added(name, tensor):
    return lambda tensors: tensors | {name: tensor}


DAMAGE = {
    "half-renamed": (renamed, "does not use|converted"),
    "no-down": (without("to_q", "A.weight"), "lacks one of the two matrices"),
    "no-up": (without("to_q", "B.weight"), "lacks one of the two matrices"),
    "nan": (changed(lambda t: torch.full_like(t, torch.nan)), "not finite"),
    "inf": (changed(lambda t: t + torch.inf), "not finite"),
    "integers": (changed(lambda t: t.to(torch.int8)), "whole numbers"),
    "another-rank": (changed(lambda t: torch.cat([t, t], 1)), "do not fit each other"),
    "another-width": (changed(lambda t: torch.cat([t, t], 0)), ""),
    "one-dimension": (changed(lambda t: t.flatten()), "do not fit each other"),
    "alpha-alone": (added("unet.nowhere.alpha", torch.tensor(1.0)), "scales without matrices|alpha"),
    "of-another-kind": (added("unet.conv_in.diff", torch.ones(2)), ""),
    "with-lora-in-its-name": (added("unet.lora_extra.weight", torch.ones(2, 2)), "lora_extra|cannot be added"),
    "dora": (added("unet.down_blocks.0.attentions.0.dora_scale", torch.ones(2)), "dora_scale.*of another version"),
    "an-unknown-prefix": (added("prior.x.lora_A.weight", torch.ones(2, 2)), "lacks one"),
}


@pytest.mark.parametrize(
    ("style", "damage"),
    [(peft, damage) for damage in DAMAGE]
    + [(style, damage) for style in (older, kohya) for damage in ("half-renamed", "no-down", "no-up", "another-width")],
)
def test_what_is_not_whole_is_rejected(model_folder, layers, tmp_path, style, damage):
    change, message = DAMAGE[damage]
    tensors = change(layers)
    own = {n: t for n, t in tensors.items() if not n.startswith(("unet.", "prior."))}
    styled = style(own, "unet", lambda _: 2.0) | {n: t for n, t in tensors.items() if n not in own}
    path = tmp_path / "damaged.safetensors"
    save_file({n: t.contiguous() for n, t in styled.items()}, path)
    with pytest.raises(InputError, match=rf"damaged\.safetensors.*({message})"):
        load(model_folder("sd-epsilon"), loras=[path])


ALPHAS = (lambda name: 0.5 if "q" in name else 2.0, lambda name: 0.5 if "2" in name else 4.0)


@pytest.mark.parametrize("prefix", ["unet", "text_encoder"])
def test_scales_that_differ_between_layers_are_kept_or_rejected(model_folder, tmp_path, prefix):
    """The loader confuses some of them, mostly those of text encoders."""

    def network(denoiser):
        return denoiser.network if prefix == "unet" else denoiser.pipeline.text_encoder

    modules = [*MODULES, "ff.net.2"] if prefix == "unet" else ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    own = matrices(network(load(model_folder("sd-epsilon"))), modules)
    own = {n.removeprefix("text_model."): t for n, t in own.items()}
    start = "text_model." if prefix == "text_encoder" else ""
    path = tmp_path / "scales.safetensors"
    for alpha in ALPHAS:
        save_file(kohya({start + n: t for n, t in own.items()}, prefix, alpha), path)
        expected = summed(network(load(model_folder("sd-epsilon"))), own, alpha)
        message = None
        try:
            found = network(load(model_folder("sd-epsilon"), loras=[path]))
        except InputError as e:
            message = str(e)
        if message is None:
            assert_same(found, expected)
        else:
            assert re.search(r"scales\.safetensors: \d+ layers would be scaled otherwise", message)


def test_a_text_encoder_that_is_not_there(model_folder, tmp_path):
    encoder = load(model_folder("sdxl")).pipeline.text_encoder_2
    own = matrices(encoder, ["q_proj"])
    path = tmp_path / "words.safetensors"
    save_file(peft(own, "text_encoder_2", None), path)
    expected = summed(load(model_folder("sdxl")).pipeline.text_encoder_2, own)
    assert_same(load(model_folder("sdxl"), loras=[path]).pipeline.text_encoder_2, expected)
    message = r"words\.safetensors holds 4 tensors for text_encoder_2, which this StableDiffusionPipeline does not have"
    with pytest.raises(InputError, match=message):
        load(model_folder("sd-epsilon"), loras=[path])
    with pytest.raises(InputError, match="text_encoder_2, which this StableDiffusionXLPipeline does not have"):
        load(model_folder("sdxl"), loras=[path], without=["text_encoder_2", "tokenizer_2"])


def test_a_text_encoder_of_another_width(model_folder, tmp_path):
    own = matrices(load(model_folder("sd-epsilon")).pipeline.text_encoder, ["q_proj"])
    wide = {n: torch.cat([t, t], 1 if "lora_A" in n else 0) for n, t in own.items()}
    path = tmp_path / "wide.safetensors"
    save_file(peft(wide, "text_encoder", None), path)
    with pytest.raises(InputError, match=r"wide\.safetensors was made for another model: text_encoder\..*\(2, 32\)"):
        load(model_folder("sd-epsilon"), loras=[path])


def test_a_text_encoder_of_more_layers(model_folder, tmp_path):
    own = matrices(load(model_folder("sd-epsilon")).pipeline.text_encoder, ["q_proj"])
    deep = own | {name.replace("layers.0", "layers.9"): tensor.clone() for name, tensor in own.items()}
    path = tmp_path / "deep.safetensors"
    save_file(peft(deep, "text_encoder", None), path)
    with pytest.raises(InputError, match=r"deep\.safetensors has 2 tensors that the text_encoder .*layers\.9\."):
        load(model_folder("sd-epsilon"), loras=[path])


def test_a_network_of_another_width(model_folder, layers, tmp_path):
    wide = {n: torch.cat([t, t], 1 if "lora_A" in n else 0) for n, t in layers.items()}
    path = tmp_path / "wide.safetensors"
    save_file(peft(wide, "unet", None), path)
    with pytest.raises(InputError, match=r"wide\.safetensors was made for another model: unet\."):
        load(model_folder("sd-epsilon"), loras=[path])


def test_names_that_a_loader_prepares_and_does_not_fill(model_folder, layers, tmp_path):
    path = tmp_path / "adapter.safetensors"
    named = {n.replace(".weight", ".default.weight"): t for n, t in layers.items()}
    save_file(peft(named, "unet", None), path)
    with pytest.raises(InputError, match=r"adapter\.safetensors has \d+ tensors that unet does not use .*version"):
        load(model_folder("sd-epsilon"), loras=[path])


def test_matrices_of_zeros_change_nothing_and_may_be_left_out(model_folder, layers, tmp_path):
    zeros = {"unet.nowhere.lora_A.weight": torch.ones(2, 4), "unet.nowhere.lora_B.weight": torch.zeros(4, 2)}
    path = tmp_path / "zeros.safetensors"
    save_file(peft(layers, "unet", None) | zeros, path)
    expected = summed(load(model_folder("sd-epsilon")).network, layers)
    assert_same(load(model_folder("sd-epsilon"), loras=[path]).network, expected)


@pytest.mark.parametrize("name", ["sd-epsilon", "class-unet"])
def test_of_several_files_none_is_taken(model_folder, layers, tmp_path, name):
    if name == "sd-epsilon":
        save_file(peft(layers, "unet", None), tmp_path / "pytorch_lora_weights.safetensors")
    else:
        network = load(model_folder(name)).network
        adapt_network(network, RANK)
        save_adapter(network, dict(network.named_parameters()), tmp_path)
    load(model_folder(name), loras=[tmp_path])
    save_file({"x": torch.ones(1)}, tmp_path / "another.safetensors")
    with pytest.raises(InputError, match=rf"holds 2 weight files \(another\.saf.*name one, as {tmp_path}/another"):
        load(model_folder(name), loras=[tmp_path])
    load(model_folder(name), loras=[tmp_path / "pytorch_lora_weights.safetensors"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match=r"empty holds no \.safetensors file"):
        load(model_folder(name), loras=[empty])


@pytest.fixture(scope="module")
def class_layers(model_folder, tmp_path_factory):
    """Return random LoRA weights of a class-conditional network."""
    folder = tmp_path_factory.mktemp("class")
    network = load(model_folder("class-unet")).network
    adapt_network(network, RANK)
    torch.manual_seed(0)
    values = {n: torch.randn_like(p) for n, p in network.named_parameters()}
    save_adapter(network, values, folder)
    return load_file(folder / "pytorch_lora_weights.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (renamed, "does not use .*xx_blocks"),
        (without("lora_A"), "lacks one of the two matrices"),
        (without("conv1.lora_B"), "lacks one of the two matrices"),
        (without("embedding_A"), "lacks one of the two matrices"),
        (added("mid_block.x.lora_B.weight", torch.ones(2, 2)), "lacks one of the two matrices"),
        (added("class_embedding.alpha", torch.tensor(1.0)), "scaled otherwise than their alpha"),
        (added("conv_in.magnitude", torch.ones(2)), "does not use .conv_in.magnitude"),
        (changed(lambda t: t * torch.nan), "not finite"),
        (changed(lambda t: torch.cat([t, t])), "damaged"),
        (lambda _: {"x": torch.ones(1)}, "does not use .x"),
    ],
)
def test_class_loras_are_whole(model_folder, class_layers, tmp_path, damage, message):
    path = tmp_path / "damaged.safetensors"
    save_file(class_layers, path)
    changed_network = load(model_folder("class-unet"), loras=[f"{path}@0.5"]).network
    plain = load(model_folder("class-unet")).network
    layer = next(n for n in class_layers if "conv1.lora_A" in n).split(".lora_")[0]
    down, up = (class_layers[f"{layer}.lora_{m}.weight"] for m in "AB")
    expected = plain.get_submodule(layer).weight + 0.5 * torch.einsum("or,rihw->oihw", up.flatten(1), down)
    torch.testing.assert_close(changed_network.get_submodule(layer).weight, expected, rtol=1e-4, atol=1e-5)
    save_file({n: t.contiguous() for n, t in damage(class_layers).items()}, path)
    with pytest.raises(InputError, match=message):
        load(model_folder("class-unet"), loras=[path])
