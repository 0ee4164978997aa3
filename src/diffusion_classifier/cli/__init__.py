"""The command line: parse options, call the library, print results."""

from __future__ import annotations

import errno
import io
import sys

from rich.text import Text

from ..errors import InputError
from . import (  # noqa: F401 - each adds its commands
    baseline,
    bench,
    calibrate,
    classify,
    demo,
    distill,
    evaluate,
    figure,
    finetune,
    invert,
    reproduce,
    runs,
    scenes,
    score,
    tasks,
    train,
)
from .options import app, stderr


def main() -> None:
    """Run the command line. A user's mistake ends it with one sentence and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every file name can be encoded
    try:
        app()
    except (InputError, MemoryError, OSError, RuntimeError) as e:
        sentence = str(e) if isinstance(e, InputError) else _environment_error(e)
        if sentence is None:
            raise
        # Text, because rich would take the name of a file [red]x.png for markup.
        stderr.print(Text("error:", "bold red"), Text(sentence), soft_wrap=True)
        sys.exit(2)


def _environment_error(e: Exception) -> str | None:
    """Return a sentence on an error caused by the machine, such as a full disk; None for any other."""
    if isinstance(e, OSError):
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        return f"{e.filename or 'the output'} cannot be written: {e.strerror}" if full else None
    from torch._dynamo.exc import TorchDynamoException

    from ..denoisers.devices import one_line, out_of_memory

    if out_of_memory(e):
        advice = "try --dtype bfloat16, a smaller --batch-size, or a --device with more memory"
        return f"memory does not suffice ({one_line(e)}): {advice}"
    if isinstance(e, TorchDynamoException):
        return f"torch.compile does not work here ({one_line(e)}): leave out --compile"
    return None
