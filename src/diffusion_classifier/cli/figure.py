"""`figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Dtype, ImageColumn, LabelColumn, Loss, Model, Template, app, load_classifier, say

figure = typer.Typer(
    help="Pictures of what decided: of one image, or of a run. Needs the extra 'figures'.", no_args_is_help=True
)
app.add_typer(figure, name="figure")

_Image = Annotated[Path, typer.Argument(help="Image file.")]
_Run = Annotated[Path, typer.Argument(help="Folder of a run.")]
_Out = Annotated[Path, typer.Option("--out", "-o", help="Picture to write, such as figure.png.")]
_Two = Annotated[str, typer.Option(help="Comma-separated: two of them.")]
_Draws = Annotated[int, typer.Option(min=1, help="Of every class.")]


@figure.command()
def errors(
    image: _Image,
    out: _Out,
    labels: Annotated[str, typer.Option(help="Comma-separated.")],
    model: Model = "fashion",
    template: Template = None,
    noises: Annotated[int, typer.Option(min=1, max=12, help="Each in a panel of its own.")] = 4,
    times: Annotated[int, typer.Option(min=1, help="At which each is looked at.")] = 50,
    loss: Loss = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Errors of classes over time, for several noises (paper, figure 2).

    Example: `diffusion-classifier figure errors boot.png --labels 'Ankle boot,Sneaker' -o errors.png`
    """
    from ..analysis.image_figures import draw_errors, errors_over_time
    from ..data.prompts import parse_labels

    names = parse_labels(labels)
    classifier = load_classifier(model, device, dtype, "auto", False)
    table, at = errors_over_time(
        classifier,
        image,
        names,
        num_noises=noises,
        num_times=times,
        loss=loss or classifier.denoiser.defaults.loss,
        template=template or None,
    )
    draw_errors(table, at, names, out)
    say(f"drawn to {out}")


@figure.command()
def race(
    image: _Image,
    out: _Out,
    labels: Annotated[str | None, typer.Option(help="Comma-separated; all that the model knows if not given.")] = None,
    model: Model = "fashion",
    template: Template = None,
    draws: _Draws = 64,
    loss: Loss = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Ranks of the classes of one image as draws accumulate.

    Example: `diffusion-classifier figure race boot.png -o race.png`
    """
    from ..analysis.image_figures import draw_race
    from ..data.prompts import parse_labels
    from ..errors import InputError

    names = None if labels is None else parse_labels(labels)
    classifier = load_classifier(model, device, dtype, "auto", False)
    (found,) = classifier.classify(
        [image], names, strategy=f"fixed:{draws}", loss=loss, weights="uniform", template=template or None
    )
    if found.failure is not None:
        raise InputError(f"{image}: {found.failure}")
    draw_race(found.errors, found.class_names, out)
    say(f"drawn to {out}")


@figure.command()
def where(
    image: _Image,
    out: _Out,
    labels: _Two,
    model: Model = "fashion",
    template: Annotated[str, typer.Option(help="Around both, for a model that reads text.")] = "a photo of a {}.",
    draws: _Draws = 64,
    loss: Loss = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Where on the image the first class fits better than the second.

    Example: `diffusion-classifier figure where boot.png --labels 'Ankle boot,Sneaker' -o where.png`
    """
    from ..analysis.image_figures import draw_where
    from ..analysis.image_figures import where as find
    from ..data.prompts import fill_template, parse_labels
    from ..denoisers import load_denoiser
    from ..errors import InputError

    names = parse_labels(labels)
    if len(names) != 2:
        raise InputError(f"two labels are compared; got {len(names)}: {labels}")
    denoiser = load_denoiser(model, device=device, dtype=dtype)
    first, second = names if denoiser.class_names is not None else fill_template(template, names)
    picture, difference = find(denoiser, image, (first, second), num_draws=draws, loss=loss)
    draw_where(picture, difference, (names[0], names[1]), out)
    say(f"drawn to {out}")


@figure.command()
def words(
    image: _Image,
    out: _Out,
    prompt: Annotated[str, typer.Option(help="Of which each word is left out in turn.")],
    model: Model = "scenes",
    draws: _Draws = 64,
    loss: Loss = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Which word of a prompt an image speaks for: how much the error rises without it.

    Example: `diffusion-classifier figure words scene.png --prompt 'a dark bag left of a dress' -o words.png`
    """
    from ..analysis.image_figures import draw_words
    from ..analysis.image_figures import words as find

    classifier = load_classifier(model, device, dtype, "auto", False)
    found = find(classifier, image, prompt, num_draws=draws, loss=loss or classifier.denoiser.defaults.loss)
    draw_words(found, out)
    say(f"drawn to {out}")


@figure.command()
def times(run: _Run, out: _Out) -> None:
    """Accuracy of a single draw against its time (paper, figure 3).

    The run is one of `evaluate --strategy fixed:DRAWS --store-errors`.

    Example: `diffusion-classifier figure times runs/pets -o times.png`
    """
    from ..analysis.run_figures import draw_single_times

    draw_single_times(run, out)
    say(f"drawn to {out}")


@figure.command()
def scaling(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs of the same images.")],
    out: _Out,
) -> None:
    """Accuracy as draws accumulate, a line for each run (paper, figure 4).

    The runs are of `evaluate --strategy fixed:DRAWS --store-errors`, such as with other `--timesteps`.

    Example: `diffusion-classifier figure scaling runs/even runs/middle -o scaling.png`
    """
    from ..analysis.frontier import draw_frontier
    from ..analysis.frontier import scaling as find
    from ..runs.error_tables import read_tables

    read = [read_tables(run) for run in runs]
    times = [f"t = {tables.settings['timesteps']}" for tables in read]
    names = times if len(set(times)) == len(runs) else [str(run) for run in runs]
    points = list(find(dict(zip(names, read, strict=True))))
    draw_frontier(points, f"{len(read[0].images)} images, {len(read[0].class_names)} classes", "accuracy", out)
    say(f"drawn to {out}")


@figure.command()
def reliability(run: _Run, out: _Out) -> None:
    """How often answers of each score are right.

    Example: `diffusion-classifier figure reliability runs/pets -o reliability.png`
    """
    from ..analysis.run_figures import draw_predictions

    draw_predictions("reliability", run, out)
    say(f"drawn to {out}")


@figure.command()
def confusion(run: _Run, out: _Out) -> None:
    """Answers by true class.

    Example: `diffusion-classifier figure confusion runs/pets -o confusion.png`
    """
    from ..analysis.run_figures import draw_predictions

    draw_predictions("confusion", run, out)
    say(f"drawn to {out}")


@figure.command()
def confused(
    run: _Run,
    out: _Out,
    data: Annotated[str | None, typer.Option(help="Where the images are; where they were if not given.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
) -> None:
    """The pairs of classes that are confused most often, with images.

    Example: `diffusion-classifier figure confused runs/pets -o confused.png`
    """
    from ..analysis.run_figures import confused_pairs as find
    from ..analysis.run_figures import draw_confused
    from ..runs.source import check_source, open_run_source
    from ..runs.spec import read_spec

    spec = read_spec(run)
    source = open_run_source(spec, data, split=split, image_column=image_column, label_column=label_column)
    check_source(source, spec, run)
    draw_confused(find(run), source, out)
    say(f"drawn to {out}")
