"""What tests of the command line share."""

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
    """The one sentence that is printed for a mistake."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def choices(err):
    """The option and the choices that the parser names in its message about a value that is none of them."""
    text = " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    found = re.search(r"Invalid value for '(.*?)': .* is not one of (.*)\.", text)
    return found[1], re.findall("'(.*?)'", found[2])


def parse(words):
    """As the command line does, without doing it."""

    def disarm(command):
        command.callback = None
        for child in getattr(command, "commands", {}).values():
            disarm(child)

    command = typer.main.get_command(app)
    disarm(command)
    command.main(list(words), standalone_mode=False)
