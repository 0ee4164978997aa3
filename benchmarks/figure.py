"""Draw the roofline of results.json: operations per second against operations per byte of weights.

    python benchmarks/figure.py benchmarks/results.json docs/benchmarks.png

Every network call reads the weights at least once. Memory bandwidth may limit calls of few rows; arithmetic limits
calls of many rows.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("results", type=Path, help="results.json, as run.py writes it")
parser.add_argument("out", type=Path, help="image file to write")
options = parser.parse_args()
results = json.loads(options.results.read_text("utf-8"))
rows = [row for row in results["rows"] if "gflops_per_second" in row]
figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
peak = max(row["peak_gflops_per_second"] for row in rows)
bandwidth = max(row["gigabytes_per_second"] for row in rows)
every = []
for row in rows:
    rates = {int(k): v for k, v in row["gflops_per_second"].items()}
    intensity = [k * row["gflops"] / row["weight_gigabytes"] for k in rates]
    every += intensity
    axes.plot(intensity, list(rates.values()), "o-", ms=4, label=row["name"].split(":")[0])
    for (k, rate), x in zip(rates.items(), intensity, strict=True):
        axes.annotate(str(k), (x, rate), textcoords="offset points", xytext=(0, 5), ha="center", fontsize=7)
x = np.geomspace(1, max(every) * 2, 200)
axes.plot(x, np.minimum(peak, bandwidth * x), color="black", lw=1, label="matrix-product peak and memory bandwidth")
axes.set(
    xscale="log", yscale="log", xlabel="operations per byte of weights (labels: rows per call)",
    ylabel="10⁹ operations per second",
)  # fmt: skip
axes.yaxis.set_major_formatter("{x:g}")
axes.yaxis.set_minor_formatter("{x:g}")
axes.grid(alpha=0.3)
axes.legend(fontsize=8)
figure.savefig(options.out, dpi=150)
