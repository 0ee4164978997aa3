"""Print measurements of models and runs, as a table, JSON or Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..analysis.calibration import Calibration
    from ..analysis.frontier import Point
    from ..analysis.outliers import Outliers
    from ..analysis.robustness import Robustness
    from ..analysis.speed import Bench
    from ..metrics import Interval
    from ..runs.summary import Comparison, Summary
    from ..training.confusable_classes import Gain


def print_bench(bench: Bench, as_json: bool) -> None:
    """Print a measurement of speed, as a JSON object or as two tables."""
    if as_json:
        print(json.dumps(asdict(bench) | {"utilisation": bench.utilisation}))
        return
    console = Console()
    measured = Table(show_header=False, title=f"{bench.model} on {bench.device}, {bench.dtype}")
    for name, value in {
        "evaluations per second": f"{bench.evaluations_per_second:.4g}",
        "batch size": str(bench.batch_size),
        "operations per evaluation": f"{bench.gflops:.4g} GFLOP",
        "share common to the classes of a draw": f"{bench.share:.1%}",
        "operations per second": f"{bench.tflops_per_second:.3g} TFLOP/s",
        "utilisation": f"{bench.utilisation:.0%} of {bench.peak_tflops_per_second:.3g} TFLOP/s in a matrix product",
        "encoding per image": f"{bench.encode_seconds:.3g} s",
        "peak memory": f"{bench.peak_memory_gb:.2f} GB",
    }.items():
        measured.add_row(name, value)
    console.print(measured)
    strategies = dict.fromkeys(name for costs in bench.seconds_per_image.values() for name in costs)
    predicted = Table("strategy", *(f"{k} classes" for k in bench.seconds_per_image), title="seconds per image")
    for name in strategies:
        cells = [costs.get(name) for costs in bench.seconds_per_image.values()]
        predicted.add_row(name, *("–" if cell is None else f"{cell:,.3g}" for cell in cells))
    console.print(predicted)


def print_calibration(calibration: Calibration, as_json: bool) -> None:
    """Print a calibration and its effect, as a JSON object or as a table."""
    defaults = calibration.defaults
    if as_json:
        fitted = {"strategy": defaults.strategy, "temperature": defaults.temperature, "weights": defaults.weights}
        print(
            json.dumps({k: v for k, v in asdict(calibration).items() if k not in ("defaults", "predictions")} | fitted)
        )
        return
    table = Table(show_header=False, title=f"{calibration.num_images} images, cross-validated")
    temperature = "no true labels" if defaults.temperature is None else f"{defaults.temperature:.3g}"
    ece = calibration.calibration_error
    gain = _or(calibration.gain, "no true labels")
    if calibration.gain is not None:
        gain += ": used" if calibration.gains else ": not significant, not used"
    for name, value in {
        "strategy": defaults.strategy,
        "evaluations per image": f"{calibration.num_evaluations:.1f}; exhaustive: {calibration.full_evaluations}",
        "disagreement with exhaustive search": _or(calibration.changed, "no true labels"),
        "accuracy": _or(calibration.accuracy, "no true labels"),
        "accuracy of exhaustive search": _or(calibration.full_accuracy, "no true labels"),
        "gain in accuracy by timestep weights": gain,
        "temperature": temperature,
        "expected calibration error (ECE)": "no true labels" if ece is None else f"{ece:.3f}",
    }.items():
        table.add_row(name, value)
    Console().print(table)


def print_frontier(points: list[Point], as_json: bool) -> None:
    """Print one line per strategy."""
    if as_json:
        for point in points:
            print(json.dumps(asdict(point)))
        return
    measure = "accuracy" if points[0].agreement is None else "agreement with exhaustive search"
    table = Table("family", "strategy", "evaluations per image", f"{measure}, 95% interval")
    for point in points:
        table.add_row(point.family, point.strategy, f"{point.num_evaluations:.1f}", str(point.share))
    Console().print(table)


def print_summaries(summaries: list[Summary], comparisons: list[Comparison], output: str) -> None:
    """Print runs, one per column, and comparisons with the first.

    Args:
        summaries: summaries of the runs.
        comparisons: comparisons of the other runs with the first.
        output: "table", "json" or "markdown".
    """
    if output == "json":
        print(json.dumps({"runs": [asdict(s) for s in summaries], "comparisons": [asdict(c) for c in comparisons]}))
        return
    lines = [("", *(s.run for s in summaries))]
    values: dict[str, Callable[[Summary], str]] = {
        "task": lambda s: s.task or "–",
        "model": lambda s: s.model,
        "strategy": lambda s: s.strategy,
        "images": lambda s: f"{s.num_done} of {s.num_images}" + (f", {s.num_failed} failed" if s.num_failed else ""),
        "accuracy": lambda s: _or(s.accuracy, "–"),
        "mean accuracy per class": lambda s: _or(s.mean_per_class, "–"),
        "top-5 accuracy": lambda s: _or(s.top5, "–"),
        **{name: partial(_composed, tag=tag, score=score) for name, tag, score in _compositions(summaries)},
        **(
            {"image score from": _image_score_of}
            if any(s.composition and s.composition.note for s in summaries)
            else {}
        ),
        "expected calibration error (ECE)": lambda s: _number(s.calibration_error, ".3f"),
        "undecided": lambda s: _number(s.undecided, ".1%"),
        "evaluations per image": lambda s: _number(s.num_evaluations, ",.1f"),
        "cost in full evaluations": lambda s: _number(s.cost, ",.1f"),
    }
    lines += [(name, *map(value, summaries)) for name, value in values.items()]
    for i, c in enumerate(comparisons, start=1):
        blank = [""] * len(summaries)
        unit = f"{c.num_images} images" if c.num_pairs is None else f"{c.num_pairs} pairs, text score"
        if c.difference is None:
            blank[i] = f"other prediction for {c.disagreement!s} of {unit}"
        else:
            blank[i] = f"{c.difference.points()} on {unit}; p = {c.p_value:.2g} (McNemar)"
        lines.append((f"compared with {c.first}", *blank))
    _print_lines(lines, output)
    if output == "markdown":
        return
    for s in summaries:
        notes = [f"failed: {reason}" for reason in s.reasons]
        if more := s.num_failed - len(s.reasons):
            notes.append(f"failed: {more} more; their error records give the reasons")
        if s.composition is not None and s.composition.num_incomplete:
            notes.append(f"pairs without both images, which are not counted: {s.composition.num_incomplete}")
        for note in notes:
            Console(stderr=True).print(Text(f"{s.run}: {note}"), soft_wrap=True)


def _compositions(summaries: list[Summary]) -> Iterator[tuple[str, str | None, str]]:
    """Yield the lines for captioned images: name, tag and score."""
    found = [s.composition for s in summaries if s.composition is not None]
    tags = sorted({tag for c in found for tag in c.by_tag})
    if any(c.paired for c in found):
        for score in ("text", "image", "group"):
            yield f"{score} score", None, score
            for tag in tags:
                yield f"{score} score, {tag}", tag, score
    elif found:
        yield "chance accuracy", None, "chance"
        for tag in tags:
            yield f"accuracy, {tag}", tag, "accuracy"


def _image_score_of(summary: Summary) -> str:
    return "–" if summary.composition is None else summary.composition.note or "–"


def _composed(summary: Summary, tag: str | None, score: str) -> str:
    c = summary.composition
    scores = None if c is None else c.overall if tag is None else c.by_tag.get(tag)
    if scores is None:
        return "–"
    if score == "chance":
        return _number(scores.chance.get("accuracy"), ".1%")
    chance = f"; chance {scores.chance[score]:.1%}" if score in scores.shares else ""
    return f"{_or(scores.shares.get(score), '–')}{chance}"


def _or(share: Interval | None, missing: str) -> str:
    return missing if share is None else str(share)


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else f"{value:{spec}}"


def _print_found(found: Sequence[Any], lines: list[tuple[str, ...]], output: str) -> None:
    """Print results, as one JSON object per line or as a table of these lines."""
    if output == "json":
        for one in found:
            print(json.dumps(asdict(one)))
    else:
        _print_lines(lines, output)


def _print_lines(lines: list[tuple[str, ...]], output: str) -> None:
    """Print lines as a table. The first holds the headers."""
    if output == "markdown":
        lines.insert(1, ("---",) * len(lines[0]))
        print("\n".join("| " + " | ".join(line) + " |" for line in lines))
        return
    table = Table(*lines[0])
    for column in table.columns:
        column.overflow = "fold"
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    Console().print(table)


def print_gains(found: list[Gain], output: str) -> None:
    """Print one row per set of images, as "table", "json" or "markdown"."""
    lines: list[tuple[str, ...]] = [("images", "number", "before", "after", "gain")]
    for g in found:
        lines.append((g.name, str(g.num_images), str(g.before), str(g.after), g.difference.points()))
    _print_found(found, lines, output)


def print_outliers(found: list[Outliers], output: str) -> None:
    """Print one row per score and out-of-distribution run, as "table", "json" or "markdown"."""
    lines: list[tuple[str, ...]] = [("out-of-distribution run", "score", "AUROC", "FPR at 95% TPR")]
    for o in found:
        area, low, high = o.auroc
        lines.append((o.unknown, o.score, f"{area:.3f} ({low:.3f} to {high:.3f})", f"{o.false_positives:.1%}"))
    _print_found(found, lines, output)


def print_robustness(models: list[Robustness], output: str) -> None:
    """Print one model per column, as "table", "json" or "markdown". Rows of several severities have no intervals."""
    from ..analysis.robustness import NATURAL

    lines = [("", *(m.model for m in models)), ("without corruption", *(str(m.accuracy) for m in models))]
    for name, severities in models[0].by_shift.items():
        head = name if set(severities) == {NATURAL} else f"{name}:{','.join(map(str, severities))}"
        lines.append(
            (head, *(" ".join(f"{100 * share:.1f}" for share, _, _ in m.by_shift[name].values()) for m in models))
        )
    lines += [
        ("all distribution shifts", *(str(m.mean) for m in models)),
        ("corruption error", *(f"{m.corruption_error:.2f}" for m in models)),
        ("effective robustness", *("–" if m.effective is None else m.effective.points() for m in models)),
    ]
    _print_found(models, lines, output)
