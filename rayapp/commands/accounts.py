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


Days = Annotated[float | None, typer.Option(min=0, help="Days after which the token expires.  [default: never]")]


@commands.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="The user's role; it includes the roles before it.")] = Role.ANNOTATOR,
    days: Days = None,
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """Add a user and print the user's token, which is shown only once."""
    place = _workspace(studies, workspace)
    print(_store(place).add(name, role, days=days))
    _record(place, f"users add --role {role}", name)


@commands.command()
def rotate(
    name: Name,
    days: Days = None,
    overlap: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Hours for which the old token is valid still.")
    ] = 0.0,
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """Print a new token for a user, which is shown only once; the old one becomes invalid."""
    place = _workspace(studies, workspace)
    print(_store(place).rotate(name, days=days, overlap=overlap))
    _record(place, "users rotate", name)


@commands.command("list")
def list_users(studies: server.Studies = None, workspace: server.Workspace = None) -> None:
    """List the users, their roles and when their tokens expire."""
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    table = Table("name", "role", "token expires")
    for user in _store(_workspace(studies, workspace)).list():
        expires = "never" if user.expires is None else f"{datetime.fromtimestamp(user.expires):%Y-%m-%d %H:%M}"
        table.add_row(user.name, user.role, expires)
    Console().print(table)


@commands.command()
def revoke(name: Name, studies: server.Studies = None, workspace: server.Workspace = None) -> None:
    """Remove a user; the user's token becomes invalid."""
    place = _workspace(studies, workspace)
    _store(place).revoke(name)
    _record(place, "users revoke", name)


def _workspace(studies: str | None, workspace: Path | None) -> Path:
    return workspace or server.places({"studies": studies} if studies is not None else {}).workspace


def _store(workspace: Path) -> UserStore:
    from rayapp.users import UserStore

    return UserStore.of(workspace)


def _record(workspace: Path, action: str, name: str) -> None:
    from rayapp.audit_log import AuditLog, by_command

    AuditLog.of(workspace).append([by_command(action, subject=name)])
