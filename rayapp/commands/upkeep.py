"""`rayapp backup`, `restore`, `check`, `gc` and `erase`: upkeep of what a server stores."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from rayapp.commands import server


def backup(
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the backup; an existing one is updated.")],
    images: Annotated[bool, typer.Option("--images", help="Copy the images too.")] = False,
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """Back up labels with their history, clicks, scores, models and users, also while the server runs."""
    from rayapp.upkeep.backup import back_up

    places = server.places(_flags(studies, workspace))
    copied = back_up(places.studies, places.workspace, target, images=images)
    print(f"{copied.files} files copied ({_size(copied.bytes)}), {copied.kept} unchanged")
    if copied.missing:
        print(f"{len(copied.missing)} revisions are missing in the studies folder: rayapp check says of which labels")
        raise typer.Exit(1)


def restore(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of the backup.")],
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """Restore a backup into a studies folder without .rayapp and an empty workspace; then start the server."""
    from rayapp.upkeep.backup import restore as restore_backup

    places = server.places(_flags(studies, workspace))
    copied = restore_backup(source, places.studies, places.workspace)
    print(f"{copied.files} files restored ({_size(copied.bytes)}); the next start publishes the labels")


def check(studies: server.Studies = None, workspace: server.Workspace = None) -> None:
    """Check the index, every revision's digest, the labels' files and the models, also while the server runs."""
    from rayapp.upkeep.check import problems, unused

    places = server.places(_flags(studies, workspace))
    number = 0
    for problem in problems(places.studies, places.workspace):
        print(problem)
        number += 1
    print(f"{number or 'no'} problem{'s' * (number != 1)}; {_size(unused(places.studies, places.workspace))} unused")
    if number:
        raise typer.Exit(1)


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; the server must be stopped.")] = False,
    versions: Annotated[
        int | None,
        typer.Option(
            min=1, help="Include old model versions, except this many of each model and all that were in production."
        ),
    ] = None,
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """List unreferenced files older than a day, and with --delete remove them."""
    from rayapp.upkeep.garbage import collect, orphans

    places = server.places(_flags(studies, workspace))
    found = (collect if delete else orphans)(places.studies, places.workspace, versions=versions)
    sizes: dict[str, list[int]] = defaultdict(list)
    for each in found:
        sizes[each.what].append(each.size)
    for what, of in sorted(sizes.items()):
        print(f"{len(of)} x {what}: {_size(sum(of))}")
    total = _size(sum(each.size for each in found))
    print(f"{total} deleted" if delete else f"{total} can be deleted: rayapp gc --delete")


def erase(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Id of the image.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    studies: server.Studies = None,
    workspace: server.Workspace = None,
) -> None:
    """Remove an image and everything stored about it, while the server is stopped, and list what remains."""
    from rayapp.upkeep.erasure import erase as erase_image

    places = server.places(_flags(studies, workspace))
    if not yes:
        typer.confirm(f"Remove image {image}, its labels, their history and its clicks for good?", abort=True)
    left = erase_image(places.studies, places.workspace, image)
    print("erased; what remains:")
    for each in left:
        print(f"- {each}")


def _flags(studies: str | None, workspace: Path | None) -> dict[str, object]:
    return {
        **({"studies": studies} if studies is not None else {}),
        **({"workspace": workspace} if workspace is not None else {}),
    }


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
