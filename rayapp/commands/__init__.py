"""The commands of the `rayapp` command line, one module per noun.

Heavy packages are imported inside a command's function, so that `rayapp --help` is fast.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

NOTHING_LEFT = 3
"""Exit status of a command that found nothing left to do."""
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class WrongUsage(TyperException):
    """A command with a wrong argument: the text names the argument and what to type instead. Exit status 2."""

    exit_code = 2


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
