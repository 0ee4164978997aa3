"""Groups of options: dataclasses that commands take as one argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

import typer

REQUIRED: Any = ...
"""Default of a field whose option must be given."""


def option(panel: str, help_text: str, *names: str, **settings: Any) -> Any:
    """Return a `typer.Option` that `--help` shows in a panel of this name."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **settings)


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options.

    A parameter whose annotation is a dataclass is replaced by one option for each field, and the command receives the
    dataclass. The parameter's default, an instance, holds the defaults of the options.
    """
    given = signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in given if is_dataclass(p.annotation)}
    spliced = [one for p in given for one in (_options(p) if p.name in groups else (p,))]

    @wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    call.__signature__ = Signature([p.replace(kind=Parameter.KEYWORD_ONLY) for p in spliced])  # type: ignore[attr-defined]
    return call


def _options(group: Parameter) -> Iterator[Parameter]:
    """Yield one parameter for each field of a dataclass."""
    hints = get_type_hints(group.annotation, include_extras=True)
    for field in fields(group.annotation):
        default = field.default if group.default is Parameter.empty else getattr(group.default, field.name)
        default = Parameter.empty if default is MISSING else default
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
