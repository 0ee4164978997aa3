"""Measure the cost of durable runs, and test that a killed run loses no row.

    python benchmarks/runs.py overhead                 # evaluate against bare classify
    python benchmarks/runs.py workers                  # two Ray workers against one, one thread each
    python benchmarks/runs.py resume                   # a run of 100,000 finished rows
    python benchmarks/runs.py tables                   # rescore and summarize 10,000 images x 10 classes x 100 draws
    python benchmarks/runs.py kills --kills 50         # SIGKILL at random moments; compare with an uninterrupted run
    python benchmarks/runs.py kills --kills 50 --ray --longest 45    # kill driver and workers

Each command prints JSON lines.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data import LabelledSource
from diffusion_classifier.runs import (
    ClassEvaluator,
    ResultRow,
    RunSpec,
    choose,
    evaluate,
    open_run,
    read_rows,
    rescore,
    rows_to_table,
    summarize,
)
from diffusion_classifier.tasks import open_task

QUESTION = ClassEvaluator()


def sample() -> LabelledSource:
    """Open the 1,000 bundled images."""
    return open_task("fashion-sample")[1]


def report(name: str, target: float, values: list[float], **details: object) -> None:
    """Print one row as JSON."""
    row = {"name": name, "median": round(median(values), 4), "spread": [round(min(values), 4), round(max(values), 4)]}
    print(json.dumps(row | {"target": target} | details), flush=True)


def overhead(options: argparse.Namespace) -> None:
    """Measure the time of `evaluate` relative to `classify`, in turn, on the same images."""
    source, classifier = sample(), DiffusionClassifier.from_pretrained()
    positions = choose(source, limit=options.images)
    classifier.classify([source.read(i) for i in positions[:8]])
    ratios = []
    for i in range(options.repeats):
        start = time.perf_counter()
        classifier.classify(source.read(i) for i in positions)
        bare = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for _ in evaluate(classifier, source, Path(folder) / "run", QUESTION, positions=positions):
                pass
            ratios.append((time.perf_counter() - start) / bare)
        print(
            f"repeat {i + 1}: {bare:.1f} s for classify, {ratios[-1]:.4f} times as long for evaluate", file=sys.stderr
        )
    report(f"a run of {options.images} images over bare classify: seconds", 1.03, ratios)


def workers(options: argparse.Namespace) -> None:
    """Measure images per second of two workers relative to one, from the first row to the last."""
    from diffusion_classifier.runs import Work, evaluate_distributed

    source = sample()
    positions = choose(source, limit=options.images)
    work = Work(sample, {"model": "fashion", "batch_size": 64}, QUESTION)
    ratios = []
    for _ in range(options.repeats):
        rates = {}
        for count in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                times = [
                    time.perf_counter()
                    for _ in evaluate_distributed(
                        work, source, Path(folder) / "run", positions=positions, num_workers=count, chunk=options.chunk
                    )
                ]
            first = sum(t - times[0] < 0.5 * (times[-1] - times[0]) / len(times) for t in times)
            rates[count] = (len(times) - first) / (times[-1] - times[0])
        ratios.append(rates[2] / rates[1])
        print(rates, file=sys.stderr)
    report(f"two workers over one, {options.images} images in chunks of {options.chunk}: images a second", 1.8, ratios)


def made(folder: Path, images: int, classes: int, draws: int) -> tuple[RunSpec, LabelledSource]:
    """Write a run of random results, with errors if `draws` is positive. Return its spec and its source."""
    names = tuple(f"class {i}" for i in range(classes))
    labels = tuple(i % classes for i in range(images))
    source = LabelledSource("made", names, labels, tuple(map(str, range(images))), lambda _: b"")
    classifier = DiffusionClassifier.from_pretrained(batch_size=64)
    evaluator = ClassEvaluator(store_errors=draws > 0)
    spec = evaluator.prepare_spec(classifier, sample(), range(len(sample())))
    spec = replace(spec, data=source.fingerprint(), class_names=names, num_images=images, weights=None)
    rng = np.random.default_rng(0)
    with open_run(folder, spec) as run:
        for start in range(0, images, 1000):
            rows = []
            for i in range(start, min(start + 1000, images)):
                p = rng.dirichlet(np.ones(classes))
                rows.append(
                    ResultRow(
                        id=str(i), truth=names[labels[i]], prediction=names[int(p.argmax())], posterior=p.tolist(),
                        confidence=0.9, undecided=[], num_evaluations=75, cost=75.0, seconds=0.1,
                        errors=list(rng.random((classes, draws), np.float32)) if draws else None,
                        timesteps=(rng.random(draws) * 1000).tolist() if draws else None,
                    )
                )  # fmt: skip
            run.extend(rows_to_table(rows))
    return spec, source


def resume(options: argparse.Namespace) -> None:
    """Measure the time from opening a finished run to knowing which images remain."""
    with tempfile.TemporaryDirectory() as folder:
        spec, source = made(Path(folder) / "run", options.rows, 10, 0)
        times = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            with open_run(Path(folder) / "run", spec) as run:
                todo = [i for i in range(len(source)) if source.ids[i] not in run.done]
            times.append(time.perf_counter() - start)
            assert not todo
        report(f"resuming a run of {options.rows:,} rows: seconds", 2.0, times)


def tables(options: argparse.Namespace) -> None:
    """Measure the seconds that `rescore` and `summarize` take."""
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder) / "run", 10_000, 10, 100)
        again, told = [], []
        for i in range(options.repeats):
            start = time.perf_counter()
            rescore(Path(folder) / "run", Path(folder) / f"again {i}", weights=(1.0, 2.0, 0.5))
            again.append(time.perf_counter() - start)
            start = time.perf_counter()
            summarize(Path(folder) / "run")
            told.append(time.perf_counter() - start)
        report("rescore, 10,000 images x 10 classes x 100 draws: seconds", 5.0, again)
        report("summarize, the same: seconds", 5.0, told)


def kills(options: argparse.Namespace) -> None:
    """Kill the processes of a run `--kills` times at random moments, resume it each time, and check its rows."""
    out = Path(options.out or tempfile.mkdtemp())
    command = [sys.executable, "-c", "from diffusion_classifier.cli import main; main()", "evaluate", "fashion-sample"]
    command += ["--limit", str(options.images), "--store-errors", "--batch-size", "64"]
    rays = ["--ray", "local", "--workers", "2"] if options.ray else []
    rng, killed, done = np.random.default_rng(options.seed), 0, 0
    progress = []
    while True:
        process = subprocess.Popen(
            [*command, *rays, "--out", str(out / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        if killed < options.kills:
            # Wait for a new row. Do not wait with Ray, because its rows come in chunks: a kill may precede the first.
            end = time.monotonic() + (0 if options.ray else 180)
            while process.poll() is None and rows_of(out / "killed") <= done and time.monotonic() < end:
                time.sleep(0.02)
            try:
                process.wait(rng.uniform(0, options.longest))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        if code == 0:
            break
        killed += code == -signal.SIGKILL
        done = rows_of(out / "killed")
        progress.append(done)
        print(f"killed {killed} times, {done} rows", file=sys.stderr)
        if options.ray:
            subprocess.run([Path(sys.executable).with_name("ray"), "stop", "--force"], capture_output=True, check=False)
    if not (out / "alone").exists():
        subprocess.run([*command, "--out", str(out / "alone")], check=True, stdout=subprocess.DEVNULL)
    runs = [read_rows(out / name).drop_columns(["seconds"]).to_pylist() for name in ("killed", "alone")]
    ids = [row["id"] for row in runs[0]]
    both = [{row["id"]: repr(row) for row in rows} for rows in runs]
    print(
        json.dumps(
            {
                "name": f"{killed} kills{' with Ray' if options.ray else ''} in a run of {options.images} images",
                "lost": len(runs[1]) - len(set(ids)),
                "doubled": len(ids) - len(set(ids)),
                "rows_that_differ_from_the_undisturbed_run": sum(both[0].get(i) != row for i, row in both[1].items()),
                "rows_that_a_kill_took_back": sum(b < a for a, b in pairwise(progress)),
            }
        ),
        flush=True,
    )


def rows_of(folder: Path) -> int:
    """Return the number of rows on disk."""
    return len(read_rows(folder, ["id"])) if (folder / "spec.json").exists() else 0


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
commands = parser.add_subparsers(required=True)
for function, settings in (
    (overhead, {"images": 100, "repeats": 5}),
    (workers, {"images": 200, "repeats": 3, "chunk": 20}),
    (resume, {"rows": 100_000, "repeats": 5}),
    (tables, {"repeats": 3}),
    (kills, {"kills": 50, "images": 1000, "seed": 0, "longest": 5.0}),
):
    command = commands.add_parser(function.__name__)
    command.set_defaults(function=function)
    for name, default in settings.items():
        command.add_argument(f"--{name}", type=type(default), default=default, help="default: %(default)s")
    if function is kills:
        command.add_argument("--ray", action="store_true", help="run on two local Ray workers")
        command.add_argument("--out", help="folder to keep (default: a temporary folder)")
options = parser.parse_args()
options.function(options)
