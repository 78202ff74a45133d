"""The commands of the `rayapp` command line, one module per noun.

Heavy packages are imported inside a command's function, so that `rayapp --help` is fast.
"""

from typer.exceptions import TyperException


class WrongUsage(TyperException):
    """A command with a wrong argument: the text names the argument and what to type instead. Exit status 2."""

    exit_code = 2
