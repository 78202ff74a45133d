"""`rayapp ohif`: the viewer for the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(help="The OHIF viewer, which `rayapp start` serves at /ohif/ once it is installed.")


@commands.callback()
def _ohif() -> None:
    """Keep `install` a command of its own while it is the only one."""


@commands.command()
def install(
    archive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The package's archive, where there is no network.")
    ] = None,
) -> None:
    """Fetch OHIF by npm, check it and prepare it, once for this user; prints the folder it is in."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    from rayapp.config import ohif_folder
    from rayapp.downloads import ohif

    folder = ohif_folder()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(f"fetching {ohif.PACKAGE} {ohif.VERSION} (50 MB)", total=None)

        def progress(there: int, size: int) -> None:
            shown.update(task, description="unpacking and preparing", completed=there, total=size)

        new = ohif.install(folder, archive=archive, progress=progress)
    Console(stderr=True).print(
        f"OHIF {ohif.VERSION} {'is installed' if new else 'was installed already'}; a server "
        "that runs must be started anew to show it at /ohif/"
        if new
        else ""
    )
    print(folder)
