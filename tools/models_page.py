"""Write docs/models.md: supported pipelines of diffusers, their size, and the reasons why others are not supported.

The script builds networks of full size without weights (on the meta device), from the configs that their authors
published. It counts parameters and operations instead of quoting them.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from diffusion_classifier.denoisers import Conditioning, Denoiser, ModelSettings, count_flops, load_denoiser
from diffusion_classifier.denoisers.families import FAMILIES, PIPELINES, why_unsupported

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP, FLOW = DDIMScheduler(**BETAS), FlowMatchEulerDiscreteScheduler()


def vae(channels: int = 4, **config: Any) -> AutoencoderKL:
    """Build an autoencoder of the architecture that all families except Sana use."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        **config,
    )


def clip(width: int, layers: int, projection: int = 768) -> CLIPTextModelWithProjection:
    """Build the text tower of CLIP ViT-L, OpenCLIP H or bigG."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            projection_dim=projection,
        )
    )


def t5() -> T5EncoderModel:
    """Build the encoder of T5 v1.1 XXL."""
    return T5EncoderModel(
        T5Config(
            vocab_size=32128, d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
        )
    )


def gemma() -> Gemma2Model:
    """Build Gemma 2 2B. Its config differs from the default of transformers in these values."""
    return Gemma2Model(
        Gemma2Config(
            hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8, head_dim=256
        )
    )


def qwen() -> Qwen3Model:
    """Build Qwen 3 4B."""
    return Qwen3Model(
        Qwen3Config(
            hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, vocab_size=151936,
        )
    )  # fmt: skip


def unet(**config: Any) -> UNet2DConditionModel:
    """Build a U-Net like that of Stable Diffusion."""
    return UNet2DConditionModel(**{"sample_size": 64, **config})


def stable_diffusion_xl_unet() -> UNet2DConditionModel:
    """Build the U-Net of Stable Diffusion XL."""
    return unet(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def deepfloyd_if_unet() -> UNet2DConditionModel:
    """Build the U-Net of IF-I-XL."""
    return unet(
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        block_out_channels=(704, 1408, 2112, 2816),
        layers_per_block=3,
        attention_head_dim=64,
        cross_attention_dim=2816,
        encoder_hid_dim=4096,
        addition_embed_type="text",
        addition_embed_type_num_heads=64,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        norm_eps=1e-5,
    )


def lcm_unet() -> UNet2DConditionModel:
    """Build the U-Net of a latent consistency model, which takes a guidance scale."""
    return unet(cross_attention_dim=768, attention_head_dim=8, time_cond_proj_dim=256)


@dataclass(frozen=True)
class Example:
    """A well-known model of a family.

    Args:
        model: name of the model.
        condition: conditioning, in words.
        scaling: scaling of the latents, in words.
        pipeline: name of the pipeline class.
        network: function that builds the network.
        tokens: shapes of one row of the conditioning.
        autoencoder: function that builds the autoencoder. None in pixel space.
        scheduler: scheduler that the model was trained with.
        encoders: functions that build the text encoders.
        published: billions of parameters that the authors state, to check the config.
    """

    model: str
    condition: str
    scaling: str
    pipeline: str
    network: Callable[[], Any]
    tokens: dict[str, tuple[int, ...]]
    autoencoder: Callable[[], Any] | None
    scheduler: Any
    encoders: tuple[Callable[[], Any], ...] = ()
    published: float = 0.0


EXAMPLES = (
    Example(
        "Stable Diffusion 1.5", "prompt (CLIP L)", "× 0.18215", "StableDiffusionPipeline",
        lambda: unet(cross_attention_dim=768, attention_head_dim=8), {"prompt_embeds": (77, 768)}, vae, VP,
        (lambda: clip(768, 12),), 0.86,
    ),
    Example(
        "Stable Diffusion 2.1", "prompt (OpenCLIP H)", "× 0.18215", "StableDiffusionPipeline",
        lambda: unet(
            sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
        ),
        {"prompt_embeds": (77, 1024)}, vae, DDIMScheduler(**BETAS, prediction_type="v_prediction"),
        (lambda: clip(1024, 23, 512),), 0.87,
    ),
    Example(
        "LCM of Dreamshaper 7", "prompt (CLIP L), guidance 8.5", "× 0.18215", "LatentConsistencyModelPipeline",
        lcm_unet, {"prompt_embeds": (77, 768)}, vae, VP, (lambda: clip(768, 12),), 0.86,
    ),
    Example(
        "Stable Diffusion XL 1.0", "prompt (CLIP L, OpenCLIP bigG), sizes", "× 0.13025", "StableDiffusionXLPipeline",
        stable_diffusion_xl_unet, {"prompt_embeds": (77, 2048), "pooled": (1280,)}, vae, VP,
        (lambda: clip(768, 12), lambda: clip(1280, 32, 1280)), 2.6,
    ),
    Example(
        "DeepFloyd IF-I-XL", "prompt (T5)", "pixels", "IFPipeline", deepfloyd_if_unet, {"prompt_embeds": (77, 4096)},
        None, DDIMScheduler(beta_schedule="squaredcos_cap_v2"), (t5,), 4.3,
    ),
    Example(
        "PixArt-Σ-XL, 1,024 pixels", "prompt (T5), masked", "× 0.13025", "PixArtSigmaPipeline",
        lambda: PixArtTransformer2DModel(caption_channels=4096, interpolation_scale=2, use_additional_conditions=False),
        {"prompt_embeds": (300, 4096), "mask": (300,)}, vae, DDIMScheduler(), (t5,), 0.61,
    ),
    Example(
        "Stable Diffusion 3 medium", "prompt (CLIP L, OpenCLIP bigG, T5 or without)", "(z - 0.0609) × 1.5305",
        "StableDiffusion3Pipeline",
        lambda: SD3Transformer2DModel(
            num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
        ),
        {"prompt_embeds": (333, 4096), "pooled": (2048,)}, lambda: vae(16), FLOW,
        (lambda: clip(768, 12, 768), lambda: clip(1280, 32, 1280), t5), 2.0,
    ),
    Example(
        "Flux.1 dev", "prompt (CLIP L pooled, T5), guidance 1", "(z - 0.1159) × 0.3611", "FluxPipeline",
        lambda: FluxTransformer2DModel(guidance_embeds=True), {"prompt_embeds": (512, 4096), "pooled": (768,)},
        lambda: vae(16), FLOW, (lambda: clip(768, 12), t5), 12.0,
    ),
    Example(
        "Sana 1.6B, 1,024 pixels", "prompt (Gemma 2), after an instruction, masked", "× 0.41407", "SanaPipeline",
        lambda: SanaTransformer2DModel(caption_channels=2304), {"prompt_embeds": (300, 2304), "mask": (300,)},
        lambda: AutoencoderDC(
            encoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            decoder_block_types=("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
            downsample_block_type="Conv", upsample_block_type="interpolate",
        ),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), (gemma,), 1.6,
    ),
    Example(
        "Lumina Image 2.0", "prompt (Gemma 2), after an instruction, masked", "(z - 0.1159) × 0.3611",
        "Lumina2Pipeline",
        lambda: Lumina2Transformer2DModel(cap_feat_dim=2304), {"prompt_embeds": (256, 2304), "mask": (256,)},
        lambda: vae(16), FLOW, (gemma,), 2.6,
    ),
    Example(
        "Z-Image", "prompt (Qwen 3), as a chat message", "(z - 0.1159) × 0.3611", "ZImagePipeline",
        ZImageTransformer2DModel, {"prompt_embeds": (512, 2560), "mask": (512,)}, lambda: vae(16), FLOW, (qwen,), 6.0,
    ),
    Example(
        "DiT-XL/2, 256 pixels", "class of ImageNet", "× 0.18215", "DiTPipeline",
        lambda: DiTTransformer2DModel(num_layers=28, sample_size=32, out_channels=8), {"class_labels": ()}, vae,
        DDIMScheduler(), (), 0.75,  # 0.675 published; in diffusers, each block has its own embeddings
    ),
)  # fmt: skip


def denoiser_of(example: Example, network: Any, autoencoder: Any) -> Denoiser:
    """Build the denoiser of a network without weights."""
    kind = getattr(diffusers, example.pipeline)
    parameters = kind.__init__.__annotations__
    absent: dict[str, Any] = {
        name: None for name in parameters if name.startswith(("text_encoder", "tokenizer", "safety", "feature"))
    }
    absent |= {name: None for name in ("watermarker", "image_encoder") if name in parameters}
    if "requires_safety_checker" in parameters:
        absent["requires_safety_checker"] = False
    part = "unet" if isinstance(network, UNet2DConditionModel) else "transformer"
    given = {part: network, "scheduler": example.scheduler} | ({"vae": autoencoder} if autoencoder is not None else {})
    denoiser = PIPELINES[example.pipeline].from_pipeline(kind(**absent, **given), ModelSettings())
    return denoiser.to(torch.device("meta"), torch.float32)  # moves tensors that are not weights, too


def parameters_of(module: Any) -> int:
    """Count the parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def row_of(example: Example) -> str:
    """Return the table row of an example.

    Raises:
        ValueError: the number of parameters differs from the published one, so the config is wrong.
    """
    with torch.device("meta"):
        network = example.network()
        autoencoder = None if example.autoencoder is None else example.autoencoder()
        encoders = [encoder() for encoder in example.encoders]
    billions = parameters_of(network) / 1e9
    if abs(billions / example.published - 1) > 0.06:
        raise ValueError(f"{example.model}: {billions:.2f} billion parameters; {example.published} are published")
    denoiser = denoiser_of(example, network, autoencoder)
    tensors = {
        name: torch.zeros(1, *shape, dtype=torch.int64 if name in ("mask", "class_labels") else None, device="meta")
        for name, shape in example.tokens.items()
    }
    tokens = next(iter(example.tokens.values()))[:1]
    # Some networks read prompt lengths from the mask, which has no values on the meta device.
    with patch.object(torch.Tensor, "tolist", lambda _: [*tokens]):
        tflops = count_flops(denoiser, Conditioning(tensors), torch.zeros(1, dtype=torch.int64)) / 1e12
    exact = [m for m in (autoencoder, *encoders) if isinstance(m, AutoencoderKL | AutoencoderDC)]
    scoring = 2 * parameters_of(network) + 4 * sum(map(parameters_of, exact))
    text = sum((4 if isinstance(e, CLIPTextModelWithProjection) else 2) * parameters_of(e) for e in encoders)
    c, h, w = denoiser.latent_shape
    latents = f"{c}×{h}×{w}, {example.scaling}"
    variance = " + variance" if denoiser.predicts_variance else ""
    return (
        f"| {example.model} | `{denoiser.family}` | {example.condition} | {denoiser.prediction_type}{variance} | "
        f"{denoiser.image_size} | {latents} | {billions:.2f} | {scoring / 1e9:.1f} | {text / 1e9:.1f} | {tflops:.2f} |"
    )


def fashion_row() -> str:
    """Return the table row of the bundled model `fashion`."""
    denoiser = load_denoiser("fashion", device="cpu", dtype="float32")
    row = torch.zeros(1, dtype=torch.int64)
    tflops = count_flops(denoiser, denoiser.condition([0]), row) / 1e12
    numbers = parameters_of(denoiser.network)
    c, h, w = denoiser.latent_shape
    return (
        f"| fashion (bundled) | `{denoiser.family}` | class | {denoiser.prediction_type} | {denoiser.image_size} | "
        f"{c}×{h}×{w}, pixels folded | {numbers / 1e9:.3f} | {2 * numbers / 1e9:.2f} | – | {tflops:.4f} |"
    )


def page() -> str:
    """Return the text of docs/models.md.

    Raises:
        ValueError: a family has no example.
    """
    shown = {PIPELINES[example.pipeline] for example in EXAMPLES} | {PIPELINES["DDPMPipeline"]}
    if lacking := [family.family for family in FAMILIES if family not in shown]:
        raise ValueError(f"give examples of {', '.join(lacking)}")
    reasons = defaultdict(list)
    for kind in sorted({name for name in diffusers._import_structure["pipelines"] if name.endswith("Pipeline")}):
        if kind not in PIPELINES:
            reasons[why_unsupported(kind)].append(f"`{kind}`")
    rows = "\n".join([*map(row_of, EXAMPLES), fashion_row()])
    others = "\n\n".join(
        f"**{reason[0].upper()}{reason[1:]}.** {', '.join(kinds)}" for reason, kinds in reasons.items()
    )
    return TEMPLATE.format(
        version=diffusers.__version__, pipelines=", ".join(f"`{kind}`" for kind in PIPELINES), rows=rows, others=others
    )


TEMPLATE = """\
# Models

<!-- Written by tools/models_page.py; change that. -->

You can load a folder that diffusers saved, or a hub id, of these pipelines: {pipelines}.
Fine-tuned versions of their networks load, too.
`LateConditionedPipeline` is part of this package: `train --head` saves it.

## What has been verified, and what has not

Every family passes one contract suite (`tests/denoisers/test_contract.py`).
It runs on a tiny pipeline of the family's real classes, which is saved, and loaded with the real `from_pretrained`:

- The network gets the same inputs as from the pipeline's own `__call__` in a sampling step: encoded prompt, time, sizes and layout. Its output is read with the same sign.
- Images are noised as by the pipeline's scheduler, if that is right, and as by an independent formula.
- A network that returns its exact training target yields the noise itself.
- Latents are the means of the autoencoder, scaled as its decoder undoes it.
- Rows depend neither on their order nor on their batch, and a prompt's encoding does not depend on other prompts. Results in bfloat16 are close.
- No tokenizer truncates a prompt, and no global random state is read or written.

**No published weights of these models were run here**, because this project was made without access to the hub.
The bundled models are the only networks with trained weights that were run.
Real models could still differ in the layout of their weights, and their accuracy is unknown.

## Single-file checkpoints, LoRA and embeddings

<!-- not run: needs weights of the hub; tests/denoisers does the same with tiny ones -->
```console
$ diffusion-classifier classify rex.jpg --labels beagle,pug --model checkpoint.safetensors
$ diffusion-classifier classify rex.jpg --labels beagle,pug --model sd2.safetensors --config owner/pipeline
$ diffusion-classifier classify rex.jpg --labels 'TOY,pug' --model m/ --lora a.safetensors@0.8 --word TOY=b.safetensors
$ diffusion-classifier classify rex.jpg --labels beagle,pug --model owner/name --variant fp16 --without text_encoder_3
```

A single-file checkpoint needs the extra `lora` (accelerate), and the configs of a pipeline: by default, of the pipeline on the hub that its tensors look like, else of the folder or hub id in `--config`.
Files of Stable Diffusion 2 need `--config`, because they do not state their prediction type.
Only safetensors files are read.

Every tensor of a weight file is used, or the model is rejected with the names of the tensors.
For example, a LoRA whose keys fit no layer, one half of a LoRA pair, and layers that the network does not have are errors, because a model with a part of its weights still answers.

- Quantized weights need their `quantization_config` and its library. Float8 weights without scales are read as a plain cast; scaled ones are rejected.
- If a folder holds several LoRA or embedding files, name one: `FOLDER/FILE`, or `owner/name/FILE` on the hub.
- A LoRA file with alphas that diffusers would not apply is rejected: multiply its matrices by alpha / rank, remove alpha, and save it again.
- On Stable Diffusion XL an embedding needs vectors for both text encoders, `clip_l` and `clip_g`.

## At full size

All numbers are counted on networks without weights, which are built from the published configs.
"Parameters" are those of the network that predicts, in billions.
"Memory" is in GB, without activations: of network (bfloat16) and autoencoder (float32) while images are scored, and additionally of text encoders while prompts are encoded (T5, Gemma and Qwen in bfloat16, CLIP in float32).
"Operations" are 10¹² operations per prediction.

| model | family | condition | predicts | pixels | latents | parameters | memory | for prompts | operations |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

- `--image-size 512` gives a text-to-image model smaller images than it was trained on. Flux at 512 pixels takes about a quarter of the time. The loss of accuracy was not measured.
- Stable Diffusion 3 can be loaded without T5: `load_denoiser(…, without=("text_encoder_3", "tokenizer_3"))`.
- Flux dev is guidance-distilled, and takes a guidance scale as an input, which is always 1 here (no guidance). Latent consistency models get 8.5, the default of their pipeline, because they were trained with scales of 3 to 15.
- The pipelines of PixArt and IF clean captions of HTML when sampling, if the required library is installed. Here captions are never cleaned.
- Preconditioning as in EDM (Karras et al. 2022) is read from the scheduler: `EDMEulerScheduler`, or `EDMDPMSolverMultistepScheduler` as in Playground 2.5.
- The sampler that a pipeline was saved with does not matter: only the noise schedule and the prediction type are read.

## Not supported

Pipelines of diffusers {version} that are not supported, by reason:

{others}
"""  # noqa: E501 - one sentence per line of Markdown

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"), help="page to write (default: %(default)s)")
    parser.parse_args().out.write_text(page(), "utf-8")
