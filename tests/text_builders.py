"""Tiny text-to-image pipelines of every family except Stable Diffusion 1 and 2, with random weights."""

import json

import torch
from builders import text_encoder, text_unet, tokenizer, vae
from diffusers import (
    AutoencoderDC,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    IFPipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LETTERS = [chr(i) for i in range(33, 127)]
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def projected(tokens):
    """Build CLIP with a projection of its pooled output."""
    return CLIPTextModelWithProjection(text_encoder(tokens, projection_dim=16).config)


def t5():
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokens = T5Tokenizer(vocab=[(piece, -float(i > 2)) for i, piece in enumerate(pieces)], extra_ids=0)
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    return tokens, T5EncoderModel(config)


def gemma():
    """Build a tokenizer in which every letter and every byte is a token, and its encoder."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, *(f"<0x{i:02X}>" for i in range(256)), "▁", *LETTERS]
    tokens = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    config = Gemma2Config(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
    )
    return tokens, Gemma2Model(config)


def qwen():
    pieces = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    tokens = Qwen2Tokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[])
    tokens.chat_template = CHAT
    config = Qwen3Config(
        vocab_size=len(pieces),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return tokens, Qwen3Model(config)


def flow(**config):
    return FlowMatchEulerDiscreteScheduler(shift=3.0, **config)


def stable_diffusion_xl(folder, scheduler=None, vae_config=None, unet=None, **options):
    torch.manual_seed(0)
    tokens, tokens_2 = tokenizer(), tokenizer()
    network = text_unet(
        **{
            "cross_attention_dim": 32,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            **(unet or {}),
        }
    )
    StableDiffusionXLPipeline(
        vae=vae(**{"scaling_factor": 0.13025, **(vae_config or {})}),
        text_encoder=text_encoder(tokens),
        text_encoder_2=projected(tokens_2),
        tokenizer=tokens,
        tokenizer_2=tokens_2,
        unet=network,
        scheduler=scheduler or DDIMScheduler(clip_sample=False, **SD_BETAS),
        **options,
    ).save_pretrained(folder)


def playground(folder):
    """Save a model like Playground 2.5: EDM's preconditioning, and standardised latents."""
    stable_diffusion_xl(
        folder,
        EDMDPMSolverMultistepScheduler(sigma_data=0.5),
        {"scaling_factor": 0.5, "latents_mean": [-1.6, 1.5, -0.7, 2.1], "latents_std": [5.2, 4.8, 5.3, 6.1]},
    )


def latent_consistency(folder):
    torch.manual_seed(0)
    tokens = tokenizer()
    LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=text_encoder(tokens),
        tokenizer=tokens,
        unet=text_unet(time_cond_proj_dim=8),
        scheduler=LCMScheduler(**SD_BETAS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def deepfloyd_if(folder):
    torch.manual_seed(0)
    tokens, encoder = t5()
    unet = text_unet(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=32,
        encoder_hid_dim=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    IFPipeline(
        tokenizer=tokens,
        text_encoder=encoder,
        unet=unet,
        scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def pixart(folder, kind=PixArtSigmaPipeline, **config):
    torch.manual_seed(0)
    tokens, encoder = t5()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=32,
        sample_size=8,
        norm_num_groups=4,
        **config,
    )
    kind(
        tokenizer=tokens,
        text_encoder=encoder,
        vae=vae(),
        transformer=transformer,
        scheduler=DDIMScheduler(clip_sample=False),
    ).save_pretrained(folder)


def pixart_alpha(folder):
    """Save a model like PixArt-α at 1,024 pixels, whose network is conditioned on the image size."""
    pixart(folder, PixArtAlphaPipeline, use_additional_conditions=True)


def stable_diffusion_3(folder, with_t5=True):
    torch.manual_seed(0)
    tokens, tokens_2 = tokenizer(), tokenizer()
    tokens_3, encoder_3 = t5() if with_t5 else (None, None)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=12,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=projected(tokens),
        tokenizer=tokens,
        text_encoder_2=projected(tokens_2),
        tokenizer_2=tokens_2,
        text_encoder_3=encoder_3,
        tokenizer_3=tokens_3,
    ).save_pretrained(folder)


def flux(folder, guidance_embeds=True):
    torch.manual_seed(0)
    tokens = tokenizer()
    tokens_2, encoder_2 = t5()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    FluxPipeline(
        scheduler=flow(use_dynamic_shifting=guidance_embeds),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=text_encoder(tokens),
        tokenizer=tokens,
        text_encoder_2=encoder_2,
        tokenizer_2=tokens_2,
        transformer=transformer,
    ).save_pretrained(folder)
    small(folder)


def sana(folder):
    torch.manual_seed(0)
    tokens, encoder = gemma()
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    SanaPipeline(
        tokenizer=tokens,
        text_encoder=encoder,
        vae=autoencoder,
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
        ),
    ).save_pretrained(folder)


def lumina2(folder):
    torch.manual_seed(0)
    tokens, encoder = gemma()
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(300, 64, 64),
        cap_feat_dim=16,
    )
    Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=encoder,
        tokenizer=tokens,
    ).save_pretrained(folder)


def z_image(folder):
    torch.manual_seed(0)
    tokens, encoder = qwen()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 64, 64],
    )
    ZImagePipeline(
        scheduler=flow(),
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=encoder,
        tokenizer=tokens,
        transformer=transformer,
    ).save_pretrained(folder)
    small(folder)


def small(folder):
    """Set the image size to 16 pixels, because the pipeline's default is 1,024."""
    (folder / "diffusion_classifier.json").write_text(json.dumps({"image_size": 16}))


TEXT_BUILDERS = {
    "sdxl": stable_diffusion_xl,
    "playground": playground,
    "lcm": latent_consistency,
    "if": deepfloyd_if,
    "pixart": pixart,
    "pixart-alpha": pixart_alpha,
    "sd3": stable_diffusion_3,
    "sd3-without-t5": lambda folder: stable_diffusion_3(folder, with_t5=False),
    "flux-dev": flux,
    "flux-schnell": lambda folder: flux(folder, guidance_embeds=False),
    "sana": sana,
    "lumina2": lumina2,
    "z-image": z_image,
}
