"""Helpers for tests of the command line."""

import re

import numpy as np
import typer
from PIL import Image

from diffusion_classifier.cli import app

TRAIN = ["--channels", "8", "--layers", "1", "--batch-size", "8", "--warmup", "1"]


def save(path, grey, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-30, 31, (8, 8))
    Image.fromarray((grey + noise).astype(np.uint8)).save(path)


def error(err):
    """Return the error message, which must be a single line."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def choices(err):
    """Return the option and its choices from the parser's message about an invalid value."""
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    found = re.search(r"Invalid value for '(.*?)': .* is not one of (.*)\.", text)
    return found[1], re.findall("'(.*?)'", found[2])


def parse(words):
    """Parse arguments as the command line does, without running the command."""

    def disarm(command):
        command.callback = None
        for child in getattr(command, "commands", {}).values():
            disarm(child)

    command = typer.main.get_command(app)
    disarm(command)
    command.main(list(words), standalone_mode=False)
