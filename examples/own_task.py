"""Custom task: images with class names, a prompt and a metric, evaluated as a run that you can resume."""

import tempfile
from pathlib import Path

from diffusion_classifier import DiffusionClassifier
from diffusion_classifier.data import LabelledSource, load_sample
from diffusion_classifier.runs import ClassEvaluator, evaluate, summarize
from diffusion_classifier.tasks import Task

SHOES = ("Sandal", "Sneaker", "Ankle boot")


def open_shoes() -> LabelledSource:
    """Open the shoes of the bundled sample. `open_labelled` reads folders, CSV, Parquet, webdataset and the hub."""
    samples = [sample for sample in load_sample(200) if sample.label in SHOES]
    labels = tuple(SHOES.index(sample.label) for sample in samples)
    ids = tuple(str(sample.index) for sample in samples)
    return LabelledSource("shoes", SHOES, labels, ids, lambda i: samples[i].image)


TASK = Task(
    name="shoes",
    title="Shoes of Fashion-MNIST",
    num_classes=3,
    num_images=60,
    template="a photo of a {}.",
    metric="mean_per_class",
    licence="MIT",
    citation="Xiao et al. 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms",
    open=open_shoes,
)

if __name__ == "__main__":
    classifier = DiffusionClassifier.from_pretrained("fashion", batch_size=32)
    question = ClassEvaluator(task=TASK, options={"strategy": "sequential:16/0.01"})
    with tempfile.TemporaryDirectory() as folder:
        for _ in evaluate(classifier, open_shoes(), Path(folder) / "run", question, model="fashion"):
            pass
        summary = summarize(Path(folder) / "run")
    print(f"{summary.num_done} images, mean per class {summary.mean_per_class}")
