"""`optimum-cli export fxslim`: `fxslim slim` in the manner of optimum's exporters. Importing it needs optimum.

The distribution `optimum-fxslim` (integrations/optimum-fxslim) tells optimum of it. Every option is one of `fxslim
slim`, read off that command: a new one is here at once, and none can mean something else.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import Any

import typer
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from fxslim import cli

__all__ = ["FxslimCommand"]

NAME = "optimum-cli export fxslim"
_MODEL, _OUT = "model", "out"


class FxslimCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """The subcommand: `optimum-cli export fxslim --model MODEL --keep 0.7 OUT`."""

    COMMAND = CommandInfo(name="fxslim", help="Make a model smaller, prove it, and export it to ONNX with fxslim.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Gives the parser the options of `fxslim slim`, model and directory as optimum calls them."""
        parser.description = (
            "Options mean what they mean for `fxslim slim`. Exit codes: 0 ok, 1 a check failed, 2 bad input."
        )
        parser.add_argument("-m", "--model", required=True, help=_help(_parameter(_MODEL)))
        parser.add_argument(_OUT, metavar="OUT", help=_help(_parameter(_OUT)))
        for parameter in _options():
            settings: dict[str, Any] = {"dest": parameter.name, "help": _help(parameter), "default": None}
            if _is_flag(parameter):
                settings["action"] = "store_true"
            else:
                settings["metavar"] = parameter.name.upper()
                settings["action"] = "append" if parameter.multiple else "store"
            parser.add_argument(*parameter.opts, **settings)

    def run(self) -> None:
        """Runs `fxslim slim`, whose exit code becomes that of optimum-cli."""
        cli.main(["slim", *words(self.args)], name=NAME)


def words(given: Namespace) -> list[str]:
    """The arguments of `fxslim slim` that say what optimum's parser was given."""
    said = [getattr(given, _MODEL), "--out", getattr(given, _OUT)]
    for parameter in _options():
        value, option = getattr(given, parameter.name), parameter.opts[0]
        if _is_flag(parameter):
            said += [option] * bool(value)
        else:
            several = value if isinstance(value, list) else [] if value is None else [value]
            said += [word for one in several for word in (option, one)]
    return said


def _parameters() -> list[Any]:
    command: Any = typer.main.get_command(cli.app)
    found: list[Any] = command.commands["slim"].params
    return found


def _parameter(name: str) -> Any:
    return next(parameter for parameter in _parameters() if parameter.name == name)


def _options() -> Iterator[Any]:
    return (p for p in _parameters() if p.name not in (_MODEL, _OUT, "help"))


def _is_flag(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def _help(parameter: Any) -> str:
    choices = f" {parameter.metavar}" if parameter.metavar else ""
    return f"{parameter.help or ''}{choices}".replace("%", "%%")  # argparse formats it
