"""Collects what Pillow and its plugins warn and log about the image that the current thread decodes.

Images are decoded in several threads. `warnings.catch_warnings` replaces state of the whole process, so that it would
take the warnings of other threads for those of the image.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

from PIL import Image

_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the warnings of this thread in the list, each text once, in place of printing them."""
    _install()
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def _add(text: str) -> None:
    found = _collected.get()
    line = " ".join(text.split()).rstrip(".")
    if found is not None and line not in found:
        found.append(line)


class _WhileCollecting:
    """Module pattern of a warning filter that matches only while the thread collects."""

    def match(self, module: str) -> bool:  # noqa: ARG002 - called in place of a regular expression's
        return _collected.get() is not None


class _ShowWarning:
    """Replacement of `warnings.showwarning`; passes the warnings of other threads on."""

    def __init__(self, show: Callable[..., Any]) -> None:
        self._show = show

    def __call__(self, message: Warning | str, *args: Any, **kwargs: Any) -> None:
        if _collected.get() is None:
            self._show(message, *args, **kwargs)
        else:
            _add(str(message))


def _keep_record(record: logging.LogRecord) -> bool:
    """Filter of Pillow's loggers."""
    collecting = _collected.get() is not None and record.levelno >= logging.WARNING
    if collecting:
        _add(record.getMessage())
    return not collecting


_FILTER = ("always", None, Warning, _WhileCollecting(), 0)


@cache
def _pillow_modules() -> list[ModuleType]:
    """Import Pillow's plugins, and filter what they log."""
    Image.init()
    modules = [module for name, module in sys.modules.items() if name.startswith("PIL.")]
    for module in modules:
        if isinstance(logger := getattr(module, "logger", None), logging.Logger):
            logger.addFilter(_keep_record)
    return modules


def _install() -> None:
    """Put filter and hook in place, again if other code has replaced them since."""
    for module in _pillow_modules():  # a warning that was printed before would not be raised again
        vars(module).pop("__warningregistry__", None)
    filters: list[Any] = warnings.filters  # type: ignore[assignment] # a list, which typeshed declares to be read-only
    if filters[:1] != [_FILTER]:
        filters[:] = [_FILTER, *(other for other in filters if other is not _FILTER)]
    if not isinstance(warnings.showwarning, _ShowWarning):
        warnings.showwarning = _ShowWarning(warnings.showwarning)
