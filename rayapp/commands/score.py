"""`rayapp score`: scores images on a running server, with a progress bar."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, MAX_BYTES, Server, Token
from rayapp.commands.jobs import Wait, end, values, watch

if TYPE_CHECKING:
    from rayapp.client import Client


def score(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="A scoring method that `/info/` lists: tta, epistemic, …")
    ],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method; may be repeated.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="WHICH", help="Images: unlabeled, labeled or all.  [default: the method's own]"),
    ] = None,
    wait: Wait = True,
    enqueue: Annotated[bool, typer.Option(help="Wait in the queue while another scoring is running.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Afterwards draw the uncertainty of the most uncertain image."),
    ] = None,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Score images; exit with status 1 if the scoring fails or is stopped.

    Images that were scored before with these options and the version in production are skipped. Ctrl-C stops following
    the scoring, not the scoring itself.
    """
    from rayapp.client import Client, JobKind

    if picture is not None and not wait:
        raise WrongUsage("--picture: cannot be used with --detach, as it is drawn after the scoring")
    with Client(server, token=token) as client:
        job = client.start_job(JobKind.SCORING, method, values(options or []), enqueue=enqueue, images=images)
        print(job["id"], flush=True)
        if wait:
            end(watch(client.follow(job["id"])))
        if picture is not None:
            print(_draw(client, method, picture))


def _draw(client: Client, method: str, to: Path) -> str:
    """Draw the uncertainty of the image with the highest entropy.

    Returns:
        The image's id.
    """
    from rayapp.imaging.overlay import heatmap
    from rayapp.imaging.reader import read_segmentation, read_volume

    infos = {image: entry["image"]["info"] for image, entry in client.document()["objects"].items()}
    entropies = {image: info[f"{method}_entropy"] for image, info in infos.items() if f"{method}_entropy" in info}
    if not entropies:
        raise WrongUsage(f"--picture: {method} makes no uncertainty maps; tta and epistemic do")
    image: str = max(entropies, key=lambda name: float(entropies[name]))
    with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
        volume = read_volume(client.download_image(image, Path(folder)), max_bytes=MAX_BYTES)
        levels = read_segmentation(client.uncertainty(method, image, Path(folder)), max_bytes=MAX_BYTES)
    heatmap(volume, levels.array).save(to)
    return image
