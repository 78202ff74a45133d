"""`rayapp score`: score images on a running server, with a live bar."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayapp.commands import WrongUsage
from rayapp.commands.annotation import LOCAL, MAX_BYTES, Server, Token
from rayapp.commands.jobs import end, values, watch

if TYPE_CHECKING:
    from rayapp.client import Client


def score(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="As `/info/` lists it under scoring: tta, epistemic, …")
    ],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method; may be repeated.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="WHICH", help="unlabeled, labeled or all.  [default: the method's own]")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--detach", help="Follow it to its end, or print its id only.")] = True,
    enqueue: Annotated[bool, typer.Option(help="Let it wait while another scoring runs.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Then draw where the model is least sure, in the least sure image."),
    ] = None,
    server: Server = LOCAL,
    token: Token = None,
) -> None:
    """Score the images that were not scored yet with these options and the model that serves; exit 1 if it does not end
    well.

    Ctrl-C ends the watching, not the scoring.
    """
    from rayapp.client import Client, JobKind

    if picture is not None and not wait:
        raise WrongUsage("--picture: is drawn at the end, so not with --detach")
    with Client(server, token=token) as client:
        job = client.start_job(JobKind.SCORING, method, values(options or []), enqueue=enqueue, images=images)
        print(job["id"], flush=True)
        if wait:
            end(watch(client.follow(job["id"])))
        if picture is not None:
            print(_draw(client, method, picture))


def _draw(client: Client, method: str, to: Path) -> str:
    """Draw the image with the highest entropy; its id."""
    from rayapp.imaging.overlay import heatmap
    from rayapp.imaging.reader import read_segmentation, read_volume

    infos = {image: found["image"]["info"] for image, found in client.document()["objects"].items()}
    entropies = {image: info[f"{method}_entropy"] for image, info in infos.items() if f"{method}_entropy" in info}
    if not entropies:
        raise WrongUsage(f"--picture: {method} draws no uncertainty; tta and epistemic do")
    image: str = max(entropies, key=lambda name: float(entropies[name]))
    with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
        volume = read_volume(client.download_image(image, Path(folder)), max_bytes=MAX_BYTES)
        levels = read_segmentation(client.uncertainty(method, image, Path(folder)), max_bytes=MAX_BYTES)
    heatmap(volume, levels.array).save(to)
    return image
