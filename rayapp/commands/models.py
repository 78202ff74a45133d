"""`rayapp models`: the versions of each model, and which of them is in production."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import Json, print_json
from rayapp.commands.annotation import LOCAL, Server, Token
from rayapp.errors import NotFound

if TYPE_CHECKING:
    from rich.table import Table

    from rayapp.client import Client

commands = typer.Typer(help="Model versions of a running server.")
Model = Annotated[str, typer.Argument(metavar="MODEL")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="A version that `list` shows, such as v3.")]
PAGE = "report.html"
"""The page of a training's result among its files."""
NONE: Mapping[str, Any] = {"versions": []}


@commands.command("list")
def list_models(as_json: Json = False, server: Server = LOCAL, token: Token = None) -> None:
    """List the versions of each model, oldest first; * marks the one in production."""
    from rich.console import Console

    with _client(server, token) as client:
        models = client.models()
    if as_json:
        print_json(models)
        return
    console = Console()
    console.print(table_of(models))
    for line in not_promoted(models):
        console.print(line, highlight=False, markup=False)


def table_of(models: Mapping[str, Any]) -> Table:
    """A table of versions that fits a terminal of 80 columns."""
    from rich.table import Table

    table = Table("model", "version", "created", "parent", "metric", "baseline", "note", box=None, pad_edge=False)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for name, model in models.items():
        for version in model["versions"]:
            mark = " *" if version["version"] == model["production"] else ""
            table.add_row(name, version["version"] + mark, *_columns(version))
    return table


def not_promoted(models: Mapping[str, Any]) -> list[str]:
    """The reasons why trained versions were not promoted, one line each."""
    return [
        f"{version['version']} of {name}: {version['verdict']['why']}"
        for name, model in models.items()
        for version in model["versions"]
        if not (version.get("verdict") or {"promoted": True})["promoted"]
    ]


def _columns(version: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """Time of creation, parent, metric, the baseline's metric, and a note."""
    created = version.get("created")
    verdict = version.get("verdict") or {}
    note = "by " + version["uploaded_by"] if "uploaded_by" in version else ""
    metric, baseline = ("" if verdict.get(key) is None else f"{verdict[key]:.4f}" for key in ("metric", "baseline"))
    return (
        "" if created is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(created)),
        version.get("parent") or "",
        metric,
        baseline,
        note or ("kept" if verdict and not verdict["promoted"] else ""),
    )


@commands.command()
def show(
    model: Model,
    version: Version,
    page: Annotated[
        Path | None, typer.Option(help="Write its training report to this file or folder: scores, pictures, plan.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the version's card as JSON.")] = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Show a version: its training, its scores on the validation images, and why it is or is not in production."""
    with _client(server, token) as client:
        card = next((one for one in client.models().get(model, NONE)["versions"] if one["version"] == version), None)
        if card is None:
            raise NotFound(f"model {model!r} has no version {version!r}: `rayapp models list` lists the versions")
        if as_json:
            print(json.dumps(card, indent=1))
        else:
            print("\n".join(described(card)))
        if page is not None:
            if card.get("job") is None:
                raise NotFound(f"{version} of {model} was not trained by this server, so it has no training report")
            print(client.download_job_file(card["job"], PAGE, page))


def described(card: Mapping[str, Any]) -> list[str]:
    """The known facts in a version's card, one line each."""
    verdict, trained, data = (card.get(name) or {} for name in ("verdict", "trained", "data"))
    known: dict[str, Any] = {
        "description": card.get("description"),
        "trained": ", ".join(f"{key} {value}" for key, value in trained.items() if value is not None),
        "images": ", ".join(f"{key} {value}" for key, value in data.items() if isinstance(value, int)),
        "verdict": verdict.get("why"),
    }
    for measurement, means in (card.get("metrics") or {}).items():
        if isinstance(means, Mapping):
            known[measurement] = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    if (compared := card.get("compared")) is not None:
        wording = "Dice {difference:+.3f} (95 % interval {low:+.3f} to {high:+.3f}, {images} images)"
        known["against the version before"] = wording.format(**compared)
    return [card["version"], *(f"  {name}: {value}" for name, value in known.items() if value)]


@commands.command()
def promote(
    model: Model,
    version: Version,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Promote a version to production; requests in flight finish on the previous version."""
    with _client(server, token) as client:
        print(client.promote(model, version))


@commands.command()
def rollback(model: Model, server: Server = LOCAL, token: Token = None) -> None:
    """Promote the version that was in production before, and print its name."""
    with _client(server, token) as client:
        print(client.rollback(model))


def _client(server: str, token: str | None) -> Client:
    from rayapp.client import Client

    return Client(server, token=token)
