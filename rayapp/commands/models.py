"""`rayapp models`: the versions of every model, and which of them serves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands.annotation import LOCAL, Server, Token

if TYPE_CHECKING:
    from rich.table import Table

    from rayapp.client import Client

commands = typer.Typer(help="Model versions of a running server.")
Model = Annotated[str, typer.Argument(metavar="MODEL")]


@commands.command("list")
def list_models(server: Server = LOCAL, token: Token = None) -> None:
    """Show every model's versions, oldest first; * marks the one that serves."""
    from rich.console import Console

    with _client(server, token) as client:
        models = client.models()
    console = Console()
    console.print(listed(models))
    for line in kept(models):
        console.print(line, highlight=False, markup=False)


def listed(models: Mapping[str, Any]) -> Table:
    """Versions in a table that a terminal of 80 columns has room for."""
    from rich.table import Table

    table = Table("model", "version", "made", "parent", "metric", "before", "note", box=None, pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for name, found in models.items():
        for version in found["versions"]:
            serves = " *" if version["version"] == found["production"] else ""
            table.add_row(name, version["version"] + serves, *_columns(version))
    return table


def kept(models: Mapping[str, Any]) -> list[str]:
    """Why versions do not serve that a training made, a line for each."""
    return [
        f"{version['version']} of {name}: {version['verdict']['why']}"
        for name, found in models.items()
        for version in found["versions"]
        if not (version.get("verdict") or {"promoted": True})["promoted"]
    ]


def _columns(version: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """When it was made, of which version, how it scores and how the one before did, and what else there is to say."""
    made = version.get("created")
    verdict = version.get("verdict") or {}
    note = "by " + version["uploaded_by"] if "uploaded_by" in version else ""
    metric, before = ("" if verdict.get(key) is None else f"{verdict[key]:.4f}" for key in ("metric", "baseline"))
    return (
        "" if made is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(made)),
        version.get("parent") or "",
        metric,
        before,
        note or ("kept" if verdict and not verdict["promoted"] else ""),
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
