"""`rayapp datasets`: public data sets to try the server on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(help="Public data sets: the Medical Segmentation Decathlon.")


@commands.command("list")
def list_datasets() -> None:
    """List the data sets; images are training + test images."""
    from rich.console import Console
    from rich.table import Table

    from rayapp.downloads.decathlon import DATASETS

    table = Table("name", "modality", "structures", "images", "download", box=None)
    table.columns[0].no_wrap = True
    for dataset in DATASETS.values():
        images = " + ".join(str(count) for count in dataset.images)
        table.add_row(dataset.name, dataset.modality, dataset.structures, images, dataset.size)
    Console().print(table)


@commands.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name as `list` shows it, or its last part: spleen.")],
    folder: Annotated[Path, typer.Option(help="Folder to unpack it to.")] = Path("datasets"),
) -> None:
    """Download a data set, verify its digest and unpack it; print the folder of images for `rayapp start`."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from rayapp.downloads import decathlon

    dataset = decathlon.find_dataset(name)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(dataset.name, total=None)
        source = decathlon.source(dataset)
        path = asyncio.run(
            decathlon.download(
                dataset.name, source, folder, lambda done, size: progress.update(task, completed=done, total=size)
            )
        )
    print(path / "imagesTr")
