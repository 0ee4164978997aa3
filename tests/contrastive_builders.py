"""Tiny contrastive models, with random weights, saved with `save_pretrained`."""

import torch
from builders import MAX_TOKENS, tokenizer
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(kind, folder):
    """Save a model of kind "clip" or "siglip". Return it with its tokenizer and image processor."""
    torch.manual_seed(0)
    tokens = tokenizer()
    special = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**SIZE, **special, "vocab_size": len(tokens), "max_position_embeddings": MAX_TOKENS, "projection_size": 16}
    vision = {**SIZE, "image_size": 12, "patch_size": 4}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        images = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        torch.nn.init.normal_(model.logit_bias)
        images = SiglipImageProcessorPil(size={"height": 12, "width": 12})
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    images.save_pretrained(folder)
    return model.eval(), tokens, images
