"""`rescore`, `report`, `summarize`, `robustness` and `outliers`: runs that are there, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .options import ImageColumn, LabelColumn, TableFormat, app, check_format, read_lines, say
from .summaries import print_outliers, print_robustness, print_summaries


@app.command()
def rescore(
    run: Annotated[Path, typer.Argument(help="Folder of a run with errors, of `evaluate --store-errors`.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    loss: Annotated[
        str | None, typer.Option(help="One that the run holds errors of, see `evaluate --also`; its own if not given.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Over time: JSON file of numbers, or uniform; the run's own if not given.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Of the scores; the run's own if not given.")] = None,
    prior: Annotated[
        Path | None, typer.Option(help="File of one positive number a class, one a line; the run's own if not given.")
    ] = None,
) -> None:
    """Answer again from stored errors, without the network, and compare with the answers of the run.

    Example: `diffusion-classifier rescore runs/pets --out runs/pets-uniform --weights uniform`
    """
    from ..runs.rescore import rescore as run_rescore
    from ..runs.summary import compare, write_summary

    run_rescore(
        run, out, loss=loss, weights=weights, temperature=temperature, prior=None if prior is None else _numbers(prior)
    )
    print_summaries([write_summary(run), write_summary(out)], [compare(run, out)], "table")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")],
    data: Annotated[
        str | None, typer.Option(help="Where the images are, for showing some; where they were if not given.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of the data.")] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
) -> None:
    """Write a run as one page: figures, best and worst images, and how to repeat it. Needs the extra 'figures'.

    Example: `diffusion-classifier report runs/sample -o report.html`
    """
    from ..analysis.report import write_report
    from ..runs.source import open_run_source
    from ..runs.spec import read_spec

    spec = read_spec(run)
    try:
        source = open_run_source(spec, data, split=split, image_column=image_column, label_column=label_column)
    except InputError as e:
        if data is not None:
            raise
        say(f"no images are shown, since they are not found where they were: {e}")
        source = None
    write_report(run, out, source)
    say(f"written to {out}")


def _numbers(file: Path) -> list[float]:
    try:
        return [float(line) for line in read_lines(file)]
    except ValueError as e:
        raise InputError(f"{file} must hold one number a line: {e}") from e


@app.command()
def summarize(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs. With several, each is compared with the first.")],
    output: TableFormat = "table",
) -> None:
    """Say what runs show: accuracy, calibration and cost, with intervals; the runs may still be at work.

    Example: `diffusion-classifier summarize runs/a runs/b`
    """
    from ..runs.summary import compare
    from ..runs.summary import summarize as read

    check_format(output)
    summaries = [read(folder) for folder in runs]
    print_summaries(summaries, [compare(runs[0], other) for other in runs[1:]], output)


@app.command()
def robustness(
    runs: Annotated[list[Path], typer.Argument(help="Runs of each model on the same images: plain, and under shifts.")],
    natural: Annotated[
        list[Path] | None, typer.Option(help="Run of a model on a test set of its own, as ImageNet-A; several times.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Picture of accuracy by severity to draw; needs the extra 'figures'.")
    ] = None,
    line: Annotated[
        Path | None,
        typer.Option(help="Picture of accuracy under shift against accuracy without, the paper's figure 7."),
    ] = None,
    output: TableFormat = "table",
) -> None:
    """Say what shift does to models: accuracy by severity, corruption error, effective robustness, with intervals.

    Runs are those of `evaluate --shift`, of all images that the run without shift has or of some. Corruption errors are
    relative to the model that is named first. Effective robustness is what a model has above the line through three or
    more that answer in one pass by a head of classes: leave out students and networks trained on drawn images.

    Example: `diffusion-classifier robustness runs/*`
    """
    from ..analysis.robustness import draw_effective, draw_severities, read_runs
    from ..analysis.robustness import robustness as measure

    check_format(output)
    models = measure(read_runs(runs, natural or ()))
    print_robustness(models, output)
    for file, draw in ((figure, draw_severities), (line, draw_effective)):
        if file is not None:
            draw(models, file)
            say(f"drawn to {file}")


@app.command()
def outliers(
    known: Annotated[Path, typer.Argument(help="Run over images of the kind that the model knows.")],
    unknown: Annotated[list[Path], typer.Argument(help="Runs of the same model over images of other kinds.")],
    output: TableFormat = "table",
) -> None:
    """Say how well a model tells images of its own kind from others: AUROC of each score that its runs hold.

    The best class's probability; of `evaluate --strategy fixed:DRAWS --store-errors` its error, which bounds the
    likelihood; of models that answer in one pass their energy. Run them over unlabelled unknown images with the
    `--class-names` of the known.

    Example: `diffusion-classifier outliers runs/fashion runs/digits runs/noise`
    """
    from ..analysis.outliers import outliers as find

    check_format(output)
    print_outliers(find(known, unknown), output)
