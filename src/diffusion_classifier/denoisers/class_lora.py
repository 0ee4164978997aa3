"""LoRA weights of class-conditional networks, for which diffusers has no loader: by peft, in one safetensors file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from .addons import check_peft, weights_file, with_scale
from .class_conditional import ClassConditional
from .devices import one_line
from .lora_accounts import check_all_applied, layers_of
from .networks import FAULTS
from .weight_files import check_all_used

FILE = "pytorch_lora_weights.safetensors"
"""Name of the file, as in diffusers."""
_LAYERS = ("conv1", "conv2", "time_emb_proj", "class_embedding", "embedding_table", "to_q", "to_k", "to_v", "0")
"""Last part of the names of adapted layers: residual blocks, attention, and the class embedding."""


def adapt_network(network: torch.nn.Module, rank: int) -> None:
    """Add LoRA matrices to the layers of a network. Only these matrices are trained from then on."""
    from peft import LoraConfig, inject_adapter_in_model

    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
    layers = [n for n, m in network.named_modules() if isinstance(m, kinds) and n.rpartition(".")[2] in _LAYERS]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), network)


def save_adapter(network: torch.nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Write LoRA weights of a network that `adapt_network` changed.

    Args:
        network: network with LoRA matrices.
        weights: name of a parameter → values, such as an average.
        folder: folder of the file.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(network, weights, save_embedding_layers=False)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / FILE)


def add_class_loras(denoiser: ClassConditional, sources: Iterable[str | Path]) -> None:
    """Fuse LoRA weights that `save_adapter` wrote into a network, so that a prediction costs as much as before.

    Args:
        denoiser: denoiser of the network.
        sources: files, folders or hub ids, with an optional scale as in "pair@0.5". Default scale: 1.

    Raises:
        InputError: peft is missing, a source cannot be read, or only a part of it would be used.
    """
    for source in sources:
        path, scale = with_scale(str(source))
        check_peft()
        from peft import LoraConfig, LoraModel, set_peft_model_state_dict

        network = denoiser.network
        file = weights_file(path)
        try:
            state = load_file(file)
            layers = layers_of(path, state)
            ranks = {layer.down.partition(".lora_")[0]: len(state[layer.down]) for layer in layers}
            check_all_used(path, _strange(state, network), "the network")
            if not ranks:
                raise ValueError("it holds no LoRA weights")
            rank = next(iter(ranks.values()))
            config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(ranks))
            adapted = LoraModel(network, config, "default")
            scaled = {name: scale * tensor if "_B" in name else tensor for name, tensor in state.items()}
            set_peft_model_state_dict(network, dict(scaled))
            made = {name: (tensor, frozenset([name])) for name, tensor in scaled.items()}
            check_all_applied(path, scaled, layers, made, {"the network": network})
            adapted.merge_and_unload()
        except InputError:
            raise
        except FAULTS as e:
            raise InputError(f"{path} cannot be added as LoRA weights: {one_line(e)}") from e


def _strange(names: Iterable[str], network: torch.nn.Module) -> list[str]:
    """Return the names that belong to no layer of the network."""
    known = {name for name, _ in network.named_modules()}
    return [name for name in names if name.partition(".lora_")[0].removesuffix(".alpha") not in known]
