"""`rescore`, `report`, `summarize`, `robustness` and `outliers`, which read runs and need no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .groups import option, takes_groups
from .options import ColumnOptions, TableFormat, app, read_lines, say
from .summaries import print_outliers, print_robustness, print_summaries


@app.command()
def rescore(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `evaluate --store-errors`.")],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    loss: Annotated[
        str | None,
        typer.Option(help="Loss whose errors the run holds; see `evaluate --also`. Default: the run's own."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Timestep weights: uniform, or a JSON file of numbers. Default: the run's own.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Temperature. Default: the run's own.")] = None,
    prior: Annotated[
        Path | None, typer.Option(help="File with one positive number per class, one per line. Default: the run's own.")
    ] = None,
) -> None:
    """Recompute predictions from stored errors under other settings, and compare them with those of the run.

    Example: `diffusion-classifier rescore runs/pets --out runs/pets-uniform --weights uniform`
    """
    from ..runs.rescoring import rescore as rescore_run
    from ..runs.summary import compare, write_summary

    rescore_run(
        run, out, loss=loss, weights=weights, temperature=temperature, prior=None if prior is None else _numbers(prior)
    )
    print_summaries([write_summary(run), write_summary(out)], [compare(run, out)], "table")


@app.command()
@takes_groups
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")],
    data: Annotated[
        str | None,
        option("Data", "Folder, file or hub id of the images, to show some. Default: the one the run evaluated."),
    ] = None,
    columns: ColumnOptions = ColumnOptions(),
) -> None:
    """Write an HTML report of a run: figures, best and worst images, and its command. Needs the extra 'figures'.

    Example: `diffusion-classifier report runs/sample -o report.html`
    """
    from ..analysis.report import write_report
    from ..runs.source import open_run_source
    from ..runs.spec import read_spec

    spec = read_spec(run)
    try:
        source = open_run_source(spec, data, **vars(columns))
    except InputError as e:
        if data is not None:
            raise
        say(f"no images are shown, because they are no longer where they were: {e}")
        source = None
    write_report(run, out, source)
    say(f"written to {out}")


def _numbers(file: Path) -> list[float]:
    try:
        return [float(line) for line in read_lines(file)]
    except ValueError as e:
        raise InputError(f"{file} must hold one number per line: {e}") from e


@app.command()
def summarize(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs. Each is compared with the first.")],
    output: TableFormat = "table",
) -> None:
    """Print the accuracy, calibration and cost of runs, with intervals. Unfinished runs are accepted.

    Example: `diffusion-classifier summarize runs/a runs/b`
    """
    from ..runs.summary import compare
    from ..runs.summary import summarize as read

    summaries = [read(folder) for folder in runs]
    print_summaries(summaries, [compare(runs[0], other) for other in runs[1:]], output)


@app.command()
def robustness(
    runs: Annotated[list[Path], typer.Argument(help="Runs of each model on the same images, clean and corrupted.")],
    natural: Annotated[
        list[Path] | None,
        typer.Option(help="Run on a test set with a natural distribution shift, such as ImageNet-A. Repeatable."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Figure of the accuracy by severity; needs the extra 'figures'.")
    ] = None,
    line: Annotated[
        Path | None,
        typer.Option(help="Figure of the accuracy with against without distribution shift (paper, figure 7)."),
    ] = None,
    output: TableFormat = "table",
) -> None:
    """Measure robustness to distribution shift: accuracy by severity, corruption error and effective robustness.

    The runs are those of `evaluate --shift`, on all or some images of the run without corruption. Corruption errors
    are relative to the first model. Effective robustness is the accuracy above a line through at least three
    supervised classifiers: leave out students and networks trained on generated images.

    Example: `diffusion-classifier robustness runs/*`
    """
    from ..analysis.robustness import draw_effective, draw_severities, read_runs
    from ..analysis.robustness import measure_robustness as measure

    models = measure(read_runs(runs, natural or ()))
    print_robustness(models, output)
    for file, draw in ((figure, draw_severities), (line, draw_effective)):
        if file is not None:
            draw(models, file)
            say(f"drawn to {file}")


@app.command()
def outliers(
    known: Annotated[Path, typer.Argument(help="Run on in-distribution images.")],
    unknown: Annotated[list[Path], typer.Argument(help="Runs of the same model on out-of-distribution images.")],
    output: TableFormat = "table",
) -> None:
    """Measure the detection of out-of-distribution images: AUROC of each score in the runs.

    The scores are the probability of the best class; its error, which bounds the likelihood, for runs of
    `evaluate --strategy fixed:DRAWS --store-errors`; and the energy of one-pass models. Evaluate unlabelled
    out-of-distribution images with the `--class-names` of the in-distribution run.

    Example: `diffusion-classifier outliers runs/fashion runs/digits runs/noise`
    """
    from ..analysis.outliers import measure_outliers as find

    print_outliers(find(known, unknown), output)
