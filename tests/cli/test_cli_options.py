import re
from dataclasses import dataclass, fields
from inspect import signature
from typing import Annotated, Literal, get_args, get_origin

import pytest
import typer
from typer.testing import CliRunner

from diffusion_classifier.cli import app
from diffusion_classifier.cli.groups import REQUIRED, option, takes_groups
from diffusion_classifier.cli.options import ModelOptions
from diffusion_classifier.denoisers.load import load_denoiser


def commands(command, words=()):
    """Every command, by its words."""
    children = getattr(command, "commands", {})
    for name, child in children.items():
        yield from commands(child, (*words, name))
    if not children or command.callback:
        yield words, command


def choices_of(parameter):
    """Values of an option that is one of a few."""
    parts = [parameter.annotation if parameter else None]
    for part in parts:
        if get_origin(part) is Literal:
            return get_args(part)
        parts += get_args(part)
    return ()


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_on_80_columns_cuts_nothing_off(words, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 80)
    printed = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).stdout
    assert max(map(len, printed.splitlines())) == 80
    assert "…" not in printed
    shown = set(re.findall(r"(?<!\S)--?[\w-]+(?!\S)", printed))
    for parameter in COMMANDS[words].params:
        if isinstance(parameter, typer.core.TyperOption):
            assert {*parameter.opts, *parameter.secondary_opts} <= shown
            assert parameter.help
            for choice in choices_of(signature(COMMANDS[words].callback).parameters.get(parameter.name)):
                assert re.search(rf"(?<![\w-]){re.escape(choice)}(?![\w-])", printed), (parameter.name, choice)


def test_every_command_that_classifies_takes_every_option_of_loading():
    loading = {field.name for field in fields(ModelOptions)}
    for words in (("classify",), ("evaluate",), ("score",), ("bench",), ("figure", "race")):
        assert loading <= {parameter.name for parameter in COMMANDS[words].params}


def test_every_argument_of_loading_is_an_option():
    assert set(signature(load_denoiser).parameters) - {"source"} == ModelOptions().load_arguments().keys() - {
        "batch_size", "compile_network", "calibration",
    }  # fmt: skip


@dataclass(frozen=True)
class _Group:
    size: Annotated[int, option("Panel", "Size.")] = 1
    name: Annotated[str, option("Panel", "Name.", "--called")] = "a"


class TestGroups:
    def run(self, default, *arguments):
        """Result, and what the command was given."""
        given = []
        one = typer.Typer()

        @one.command()
        @takes_groups
        def command(first: int, group: _Group = default, last: bool = False) -> None:
            """Do it."""
            given.append((first, group, last))

        return CliRunner().invoke(one, arguments), given

    def test_defaults_of_the_fields_and_of_the_command(self):
        assert self.run(_Group(), "3")[1] == [(3, _Group(1, "a"), False)]
        assert self.run(_Group(size=7), "3")[1] == [(3, _Group(7, "a"), False)]
        assert self.run(_Group(size=7), "3", "--called", "b", "--last")[1] == [(3, _Group(7, "b"), True)]

    def test_a_required_option(self):
        result, given = self.run(_Group(size=REQUIRED), "3")
        assert (result.exit_code, given) == (2, [])
        assert "--size" in result.stderr
        assert self.run(_Group(size=REQUIRED), "3", "--size", "2")[1] == [(3, _Group(2, "a"), False)]

    def test_help_keeps_the_order_and_the_panels(self):
        printed = self.run(_Group(), "--help")[0].stdout
        assert "Do it." in printed
        assert printed.index("--last") < printed.index("Panel") < printed.index("--size") < printed.index("--called")
