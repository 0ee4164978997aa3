"""Sources of random images, and a function that evaluates them."""

from dataclasses import fields

import numpy as np

from diffusion_classifier.data.captioned import CaptionedSource
from diffusion_classifier.data.labelled import LabelledSource
from diffusion_classifier.runs.evaluation import evaluate
from diffusion_classifier.runs.evaluators import ClassEvaluator

NAMES = ("cat", "dog", "door")
M = 14
PAIRS = 3


def pixels(i, size=16):
    return np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)


def source(count=M, names=NAMES, read=pixels):
    labels = tuple(i % len(names) for i in range(count))
    return LabelledSource("photos", names, labels, tuple(f"{i}.png" for i in range(count)), read)


def pairs(count=PAIRS, read=pixels):
    both = [(f"a {e} on b", f"b on a {e}") for e in range(count)]
    return CaptionedSource(
        "pairs",
        tuple(f"{e}/{k}" for e in range(count) for k in (0, 1)),
        tuple(captions for captions in both for _ in (0, 1)),
        (0, 1) * count,
        read,
        tuple(("object", "relation")[e % 2] for e in range(count) for _ in (0, 1)),
        paired=True,
    )


def single(read=pixels):
    captions = (("a dog", "a cat"), ("the moon", "a dog", "a cat"), ("a cat", "a tree"), ("a dog", "a tree"))
    return CaptionedSource("single", ("w", "x", "y", "z"), captions, (0, 1, 0, 1), read, ("add", "swap", "add", "add"))


def ask(classifier, images, folder, **options):
    """Call `evaluate`, with the fields of `ClassEvaluator`, the search options and the run options as keywords."""
    question = {f.name: options.pop(f.name) for f in fields(ClassEvaluator) if f.name in options}
    own = {k: options.pop(k) for k in ("positions", "part", "model", "command", "on_start") if k in options}
    return evaluate(classifier, images, folder, ClassEvaluator(**question, options=options), **own)
