"""`rayapp users`: the accounts of a server with `--auth token`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayapp.commands import server
from rayapp.protocol import Role

if TYPE_CHECKING:
    from rayapp.users import UserStore

commands = typer.Typer(help="Manage the accounts of a server started with --auth token.")
Name = Annotated[str, typer.Argument(metavar="NAME")]


@commands.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="The user's role; it includes the roles before it.")] = Role.ANNOTATOR,
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """Add a user and print the user's token, which is shown only once."""
    print(_store(studies, workspace).add(name, role))


@commands.command("list")
def list_users(studies: server.Studies = None, workspace: server.Workspace = None) -> None:
    """List the users and their roles."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "role")
    for user in _store(studies, workspace).list():
        table.add_row(user.name, user.role)
    Console().print(table)


@commands.command()
def revoke(name: Name, studies: server.Studies = None, workspace: server.Workspace = None) -> None:
    """Remove a user; the user's token becomes invalid."""
    _store(studies, workspace).revoke(name)


def _store(studies: str | None, workspace: Path | None) -> UserStore:
    from rayapp.users import UserStore

    if workspace is None:
        workspace = server.places({"studies": studies} if studies is not None else {}).workspace
    return UserStore.of(workspace)
