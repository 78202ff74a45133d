"""`rayapp labels`: the saved states of an image's label, on a running server."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from rayapp.commands import Json, print_json
from rayapp.commands.annotation import LOCAL, Server, Token
from rayapp.protocol import FINAL

commands = typer.Typer(help="List, fetch and restore the saved states of a label.")
Image = Annotated[str, typer.Argument(metavar="IMAGE")]
Tag = Annotated[str, typer.Option(help="The label's tag.")]


@commands.command("list")
def list_revisions(
    image: Image, tag: Tag = FINAL, as_json: Json = False, server: Server = LOCAL, token: Token = None
) -> None:
    """List the saved states of an image's label, newest first."""
    from rich.console import Console
    from rich.table import Table

    from rayapp.client import Client

    with Client(server, token=token) as client:
        saved = client.label_revisions(image, tag)
    if as_json:
        print_json(saved)
        return
    table = Table("revision", "saved", "by", "program", box=None, show_header=bool(saved))
    for one in reversed(saved):
        when = datetime.fromtimestamp(one["ts"]).astimezone().isoformat(" ", "seconds")
        table.add_row(str(one["number"]), when, one["user"], one["client_id"] or "")
    Console().print(table if saved else f"no {tag} label of {image} was ever saved", markup=False)


@commands.command()
def fetch(
    image: Image,
    revision: Annotated[int | None, typer.Option(min=1, help="Number of a revision.  [default: the newest]")] = None,
    output: Annotated[Path, typer.Option(metavar="PATH", help="File or folder to write to.")] = Path(),
    tag: Tag = FINAL,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Download a saved state of an image's label and print the file's path."""
    from rayapp.client import Client

    with Client(server, token=token) as client:
        print(client.download_label(image, output, tag=tag, revision=revision))


@commands.command()
def restore(
    image: Image,
    revision: Annotated[int, typer.Argument(metavar="REVISION", min=1, help="Number of the revision.")],
    tag: Tag = FINAL,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Save an earlier state of an image's label again, as the newest one. Those between are kept."""
    from rayapp.client import Client

    with Client(server, token=token) as client:
        client.restore_label(image, revision, tag=tag)
    print(f"revision {revision} of {image} is the newest again")
