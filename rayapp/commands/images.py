"""`rayapp images`: the images of a running server, and the entries that it leaves out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rayapp.commands import Json, print_json
from rayapp.commands.annotation import LOCAL, Server, Token


def images(
    problems: Annotated[
        bool,
        typer.Option("--problems", help="List only entries that are left out or cannot be read, with the reasons."),
    ] = False,
    as_json: Json = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """List the images by id, with file names that differ from the id; with --problems, entries that are not served."""
    from rich.console import Console
    from rich.table import Table

    from rayapp.client import Client

    with Client(server, token=token) as client:
        listed = client.document()["objects"]
        left_out = client.datastore().get("problems", {})
    if as_json and not problems:
        print_json(
            {image: entry["image"]["info"] | {"labels": sorted(entry["labels"])} for image, entry in listed.items()}
        )
        return
    rows = problem_rows(listed, left_out) if problems else image_rows(listed)
    if as_json:
        print_json(dict(rows))
        return
    table = Table("entry" if problems else "id", "reason" if problems else "file", box=None, show_header=bool(rows))
    for row in rows:
        table.add_row(*row)
    Console().print(table if rows else "no problems" if problems else "no images", markup=False)


def image_rows(listed: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, file name) of each image; the name is "" if it follows from the id."""
    names = {image_id: str(entry["image"]["info"].get("name", "")) for image_id, entry in listed.items()}
    return [(image_id, "" if name.startswith(f"{image_id}.") else name) for image_id, name in sorted(names.items())]


def problem_rows(listed: dict[str, Any], left_out: dict[str, str]) -> list[tuple[str, str]]:
    """(entry or image id, reason) of the entries that are left out, then of the images that could not be read."""
    unreadable = {image_id: entry["image"]["info"].get("unreadable") for image_id, entry in listed.items()}
    return [
        *sorted(left_out.items()),
        *((image_id, str(found["why"])) for image_id, found in sorted(unreadable.items()) if found),
    ]
