"""`rayapp ohif`: the OHIF viewer for browsers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(help="The OHIF viewer, which `rayapp start` serves at /ohif/ once it is installed.")


@commands.callback()
def _ohif() -> None:
    """Make `install` a subcommand although it is the only one."""


@commands.command()
def install(
    archive: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The package's archive, for a machine without network.")
    ] = None,
) -> None:
    """Download OHIF by npm, verify it and prepare it, once for this user; print its folder."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn

    from rayapp.config import ohif_folder
    from rayapp.downloads import ohif

    folder = ohif_folder()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"downloading {ohif.PACKAGE} {ohif.VERSION} (50 MB)", total=None)

        def progress(done: int, size: int) -> None:
            bars.update(task, description="unpacking and preparing", completed=done, total=size)

        new = ohif.install(folder, archive=archive, progress=progress)
    if new:
        text = f"OHIF {ohif.VERSION} is installed; restart a running server to serve it at /ohif/"
    else:
        text = f"OHIF {ohif.VERSION} was installed already"
    Console(stderr=True).print(text)
    print(folder)
