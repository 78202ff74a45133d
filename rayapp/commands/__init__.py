"""The commands of `rayapp`, one module per noun. Heavy packages are imported within a command, when it runs."""

from typer.exceptions import TyperException


class WrongUsage(TyperException):
    """A command that cannot be carried out as it was typed: the text says what to type instead."""

    exit_code = 2
