"""`rayapp models`: the versions of every model, and which of them serves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands.annotation import LOCAL, Server, Token

if TYPE_CHECKING:
    from rayapp.client import Client

commands = typer.Typer(help="Model versions of a running server.")
Model = Annotated[str, typer.Argument(metavar="MODEL")]


@commands.command("list")
def list_models(server: Server = LOCAL, token: Token = None) -> None:
    """Show every model's versions, oldest first; * marks the one that serves."""
    from rich.console import Console
    from rich.table import Table

    with _client(server, token) as client:
        models = client.models()
    table = Table("model", "version", "", "made", "parent", "metric", "note")
    for name, found in models.items():
        for version in found["versions"]:
            serves = "*" if version["version"] == found["production"] else ""
            table.add_row(name, version["version"], serves, *_columns(version))
    Console().print(table)


def _columns(version: dict[str, Any]) -> tuple[str, str, str, str]:
    made = version.get("created")
    verdict = version.get("verdict") or {}
    metric = verdict.get("metric")
    return (
        "" if made is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(made)),
        version.get("parent") or "",
        "" if metric is None else f"{metric:.4f}",
        verdict.get("why") or ("uploaded by " + version["uploaded_by"] if "uploaded_by" in version else ""),
    )


@commands.command()
def promote(
    model: Model,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="As `list` shows it: v3.")],
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Let a version serve; requests under way finish on the one before."""
    with _client(server, token) as client:
        print(client.promote(model, version))


@commands.command()
def rollback(model: Model, server: Server = LOCAL, token: Token = None) -> None:
    """Let the version serve that served before; prints its name."""
    with _client(server, token) as client:
        print(client.rollback(model))


def _client(server: str, token: str | None) -> Client:
    from rayapp.client import Client

    return Client(server, token=token)
