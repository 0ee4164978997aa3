"""`figure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .groups import option, takes_groups
from .options import ColumnOptions, DenoiserOptions, Loss, ModelOptions, Template, app, say

figure = typer.Typer(
    help="Draw what led to a prediction, or the results of a run. Needs the extra 'figures'.", no_args_is_help=True
)
app.add_typer(figure, name="figure")

_Image = Annotated[Path, typer.Argument(help="Image file.")]
_Run = Annotated[Path, typer.Argument(help="Folder of a run.")]
_Out = Annotated[Path, typer.Option("--out", "-o", help="File to write, such as figure.png.")]
_TwoLabels = Annotated[str, typer.Option(help="Two comma-separated labels.")]
_Draws = Annotated[int, typer.Option(min=1, help="Draws per class.")]


@figure.command()
@takes_groups
def errors(
    image: _Image,
    out: _Out,
    labels: Annotated[str, typer.Option(help="Comma-separated labels.")],
    template: Template = None,
    noises: Annotated[int, typer.Option(min=1, max=12, help="Noise samples, one panel each.")] = 4,
    times: Annotated[int, typer.Option(min=1, help="Timesteps per noise sample.")] = 50,
    loss: Loss = None,
    model: ModelOptions = ModelOptions(),
) -> None:
    """Draw the errors of classes over time, for several noise samples (paper, figure 2).

    Example: `diffusion-classifier figure errors boot.png --labels 'Ankle boot,Sneaker' -o errors.png`
    """
    from ..analysis.image_figures import draw_errors, errors_over_time
    from ..data.prompts import parse_labels

    names = parse_labels(labels)
    classifier = model.load_classifier()
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
@takes_groups
def race(
    image: _Image,
    out: _Out,
    labels: Annotated[str | None, typer.Option(help="Comma-separated labels. Default: all classes.")] = None,
    template: Template = None,
    draws: _Draws = 64,
    loss: Loss = None,
    model: ModelOptions = ModelOptions(),
) -> None:
    """Draw the ranks of the classes of one image as draws accumulate.

    Example: `diffusion-classifier figure race boot.png -o race.png`
    """
    from ..analysis.image_figures import draw_race
    from ..data.prompts import parse_labels
    from ..errors import InputError

    names = None if labels is None else parse_labels(labels)
    classifier = model.load_classifier()
    (found,) = classifier.classify(
        [image], names, strategy=f"fixed:{draws}", loss=loss, weights="uniform", template=template or None
    )
    if found.failure is not None:
        raise InputError(f"{image}: {found.failure}")
    draw_race(found.errors, found.class_names, out)
    say(f"drawn to {out}")


@figure.command()
@takes_groups
def where(
    image: _Image,
    out: _Out,
    labels: _TwoLabels,
    template: Annotated[str, typer.Option(help="Prompt of a label, for a text-to-image model.")] = "a photo of a {}.",
    draws: _Draws = 64,
    loss: Loss = None,
    model: DenoiserOptions = DenoiserOptions(),
) -> None:
    """Draw where on the image the first label fits better than the second.

    Example: `diffusion-classifier figure where boot.png --labels 'Ankle boot,Sneaker' -o where.png`
    """
    from ..analysis.image_figures import draw_where
    from ..analysis.image_figures import where as find
    from ..data.prompts import fill_template, parse_labels
    from ..errors import InputError

    names = parse_labels(labels)
    if len(names) != 2:
        raise InputError(f"two labels are compared; got {len(names)}: {labels}")
    denoiser = model.load_denoiser()
    first, second = names if denoiser.class_names is not None else fill_template(template, names)
    picture, difference = find(denoiser, image, (first, second), num_draws=draws, loss=loss)
    draw_where(picture, difference, (names[0], names[1]), out)
    say(f"drawn to {out}")


@figure.command()
@takes_groups
def words(
    image: _Image,
    out: _Out,
    prompt: Annotated[str, typer.Option(help="Prompt, whose words are left out in turn.")],
    draws: _Draws = 64,
    loss: Loss = None,
    model: ModelOptions = ModelOptions(model="scenes"),
) -> None:
    """Draw how much the error rises without each word of a prompt.

    Example: `diffusion-classifier figure words scene.png --prompt 'a dark bag left of a dress' -o words.png`
    """
    from ..analysis.image_figures import draw_words
    from ..analysis.image_figures import words as find

    classifier = model.load_classifier()
    found = find(classifier, image, prompt, num_draws=draws, loss=loss or classifier.denoiser.defaults.loss)
    draw_words(found, out)
    say(f"drawn to {out}")


@figure.command()
def times(run: _Run, out: _Out) -> None:
    """Draw the accuracy of a single draw against its timestep (paper, figure 3).

    The run has to be from `evaluate --strategy fixed:DRAWS --store-errors`.

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
    """Draw the accuracy as draws accumulate, one line per run (paper, figure 4).

    The runs have to be from `evaluate --strategy fixed:DRAWS --store-errors`, for example with different `--timesteps`.

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
    """Draw the accuracy of predictions against their probability.

    Example: `diffusion-classifier figure reliability runs/pets -o reliability.png`
    """
    from ..analysis.run_figures import draw_predictions

    draw_predictions("reliability", run, out)
    say(f"drawn to {out}")


@figure.command()
def confusion(run: _Run, out: _Out) -> None:
    """Draw the predictions by true class.

    Example: `diffusion-classifier figure confusion runs/pets -o confusion.png`
    """
    from ..analysis.run_figures import draw_predictions

    draw_predictions("confusion", run, out)
    say(f"drawn to {out}")


@figure.command()
@takes_groups
def confused(
    run: _Run,
    out: _Out,
    data: Annotated[
        str | None, option("Data", "Folder, file or hub id of the images. Default: the one evaluated.")
    ] = None,
    columns: ColumnOptions = ColumnOptions(),
) -> None:
    """Draw the pairs of classes that are confused most often, with images.

    Example: `diffusion-classifier figure confused runs/pets -o confused.png`
    """
    from ..analysis.run_figures import confused_pairs as find
    from ..analysis.run_figures import draw_confused
    from ..runs.source import check_source, open_run_source
    from ..runs.spec import read_spec

    spec = read_spec(run)
    source = open_run_source(spec, data, **vars(columns))
    check_source(source, spec, run)
    draw_confused(find(run), source, out)
    say(f"drawn to {out}")
