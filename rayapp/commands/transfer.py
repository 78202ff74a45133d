"""`rayapp upload` and `rayapp save`: images and labels from files to a running server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, Server, Token
from rayapp.protocol import FINAL


def upload(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Image files.")],
    image: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The image's id.  [default: the file's name]")
    ] = None,
    replace: Annotated[bool, typer.Option(help="Replace images that the server has.")] = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Store image files on the server and print the ids of the images."""
    from rayapp.client import Client
    from rayapp.imaging.reader import split_ext

    if image is not None and len(files) > 1:
        raise WrongUsage("--id: needs a single file")
    for file in files:
        check_file(file)
    with Client(server, token=token) as client:
        if not replace:
            for file in files:
                name = image or split_ext(file.name)[0]
                if client.has_image(name):
                    raise WrongUsage(f"{name} is on the server: give it another --id, or replace it with --replace")
        for file in files:
            print(client.upload_image(file, image=image), flush=True)


def save(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Id of the image.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The label map.")],
    tag: Annotated[str, typer.Option(help="The label's tag; `final` marks the image as finished.")] = FINAL,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="VALUE=NAME", help="The structure that a value stands for; may be repeated."),
    ] = None,
    looked_for: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A structure that was looked for, found or not; may be repeated."),
    ] = None,
    replace: Annotated[
        bool, typer.Option(help="Replace a label that the image has; it is kept as a revision.")
    ] = False,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Save a label map of an image; once this ends, it is durable."""
    from rayapp.client import Client

    check_file(file)
    params: dict[str, Any] = {"label_info": named(names)} if names else {}
    if looked_for:
        params["looked_for"] = looked_for
    with Client(server, token=token) as client:
        saved = client.label_revisions(image, tag)
        if client.has_label(image, tag) and not replace:
            raise WrongUsage(
                f"{image} has a {tag} label, saved by {saved[-1]['user'] or 'somebody'}: `rayapp labels fetch {image}` "
                "downloads it, --replace replaces it"
                if saved
                else f"{image} has a {tag} label: --replace replaces it"
            )
        onto = saved[-1]["number"] if saved else 0
        client.save_label(image, file, tag=tag, params=params, onto=onto)
        print(f"saved revision {client.label_revisions(image, tag)[-1]['number']} of {image}")


def check_file(file: Path) -> None:
    """Raise WrongUsage unless a file exists."""
    if not file.is_file():
        raise WrongUsage(f"{file} is not a file")


def named(names: list[str]) -> list[dict[str, object]]:
    """`label_info` of `VALUE=NAME` texts.

    Raises:
        WrongUsage: For a text of another form.
    """
    found: list[dict[str, object]] = []
    for text in names:
        value, separator, name = text.partition("=")
        if not (separator and name and value.isdecimal() and 0 < int(value) < 256):
            raise WrongUsage(f"--name: {text!r} is not VALUE=NAME with a value from 1 to 255")
        found.append({"name": name, "idx": int(value)})
    return found
