"""Converter of a Stable Diffusion 1 pipeline to the layout of the original single-file checkpoints."""

import re

UNET = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.resnets.1", "middle_block.2"),
)
RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)
VAE_ATTENTION = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))


def unet_key(key, layers=1, levels=2):
    """Return the original name of a U-Net tensor, given its name in diffusers."""
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key):
        side, block, kind, i, rest = match.groups()
        block, i = int(block), int(i)
        if side == "down":
            number = 1 + block * (layers + 1) + (i if kind != "downsamplers" else layers)
            prefix = f"input_blocks.{number}"
            if kind == "downsamplers":
                return f"{prefix}.0.op.{rest.removeprefix('conv.')}"
        else:
            number = block * (layers + 1) + (i if kind != "upsamplers" else layers)
            prefix = f"output_blocks.{number}"
            if kind == "upsamplers":
                attends = 2 if block == levels - 1 else 1  # only the second level of the tiny network has attention
                return f"{prefix}.{attends}.{rest}"
        if kind == "attentions":
            return f"{prefix}.1.{rest}"
        return f"{prefix}.0.{renamed(rest, RESNET)}"
    for new, old in UNET:
        if key.startswith(f"{new}."):
            rest = key.removeprefix(f"{new}.")
            return f"{old}.{renamed(rest, RESNET) if 'resnets' in new else rest}"
    raise KeyError(key)


def vae_key(key, levels=2):
    """Return the original name of an autoencoder tensor, given its name in diffusers."""
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block.", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{levels - 1 - int(m[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    if "mid_block.attentions.0." in key:
        before, rest = key.split("mid_block.attentions.0.")
        return f"{before}mid.attn_1.{renamed(rest, VAE_ATTENTION)}"
    return key


def renamed(key, names):
    for new, old in names:
        if key.startswith(f"{new}."):
            return old + key.removeprefix(new)
    return key


def checkpoint(pipeline):
    """Return all tensors of a pipeline by their original names."""
    tensors = {f"model.diffusion_model.{unet_key(key)}": value for key, value in pipeline.unet.state_dict().items()}
    for key, value in pipeline.vae.state_dict().items():
        name = vae_key(key)
        projection = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[f"first_stage_model.{name}"] = value[..., None, None] if projection else value
    for key, value in pipeline.text_encoder.state_dict().items():
        name = key.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = value
    return {name: value.contiguous() for name, value in tensors.items()}
