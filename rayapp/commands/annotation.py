"""`rayapp infer` and `rayapp next`: an annotator's steps, on a running server."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayapp.commands import NOTHING_LEFT, Json, WrongUsage, print_json
from rayapp.errors import Unreadable

if TYPE_CHECKING:
    from rayapp.client import Client, InferResult
    from rayapp.imaging.volume import Segmentation

MAX_BYTES = 4 << 30
"""Largest decoded image or mask, in bytes."""

Server = Annotated[str, typer.Option(envvar="RAYAPP_SERVER", metavar="URL", help="The server's address.")]
Token = Annotated[
    str | None, typer.Option(envvar="RAYAPP_TOKEN", show_envvar=True, help="Your token, for a server with --auth.")
]
LOCAL = "http://127.0.0.1:8000"


def infer(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="Id of a stored image, or a file to upload.")],
    server: Server = LOCAL,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the mask to .nii.gz, .nii or .nrrd.  [default: IMAGE.MODEL.nii.gz]"),
    ] = None,
    params: Annotated[str, typer.Option(metavar="JSON", help="Further parameters of the request.")] = "{}",
    click: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=i,j,k", help="A click, in voxel indices; may be repeated.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the mask over the image to this file.")
    ] = None,
    token: Token = None,
) -> None:
    """Run a model on an image, write the mask and print the volume of each label."""
    from rich.console import Console

    from rayapp.client import Client
    from rayapp.imaging.reader import split_ext

    request = request_params(params, click or [])
    file = Path(image) if Path(image).is_file() else None
    name = split_ext(file.name)[0] if file else image
    target = output or Path(f"{name}.{model}.nii.gz")
    try:
        request["result_extension"] = split_ext(target.name)[1]
    except Unreadable as error:
        raise WrongUsage(f"--output: {error.detail}") from error
    with Client(server, token=token) as client:
        with Console(stderr=True).status(f"{model} on {name}…"):
            result = client.infer(model, "" if file else image, file=file, params=request, to=target)
        mask = _show(result, target)
        if picture is not None and mask is not None:
            with Console(stderr=True).status("drawing…"):
                _draw(client, file, image, mask.array, _label_values(result), picture)


def request_params(text: str, clicks: list[str]) -> dict[str, Any]:
    """The request's `params`: a JSON object, with the clicks added under their labels' names.

    Args:
        text: The JSON object.
        clicks: Clicks, each as `LABEL=i,j,k`.
    """
    try:
        params = json.loads(text)
    except json.JSONDecodeError as error:
        raise WrongUsage(f"--params: not JSON: {error}") from error
    if not isinstance(params, dict):
        raise WrongUsage("--params: must be a JSON object, {…}")
    for click in clicks:
        label, _, indices = click.rpartition("=")
        try:
            point = [int(number) for number in indices.split(",")]
        except ValueError:
            point = []
        if not label or len(point) != 3:
            raise WrongUsage(f"--click: {click!r} is not LABEL=i,j,k with three whole numbers")
        params.setdefault(label, []).append(point)
    return params


def _show(result: InferResult, target: Path) -> Segmentation | None:
    """Print the volume of each label, the latencies and the file.

    Returns:
        The mask, or None if the response has none.
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from rayapp.imaging.reader import read_segmentation

    console = Console()
    if result.path is None:
        console.print_json(data=result.params)
        return None
    mask = read_segmentation(result.path, max_bytes=MAX_BYTES)
    millilitres = abs(float(np.linalg.det(mask.affine[:3, :3]))) / 1000
    counts = np.bincount(mask.array.ravel())
    table = Table("label", "value", "voxels", "ml")
    for label, value in _label_values(result).items():
        voxels = int(counts[value]) if value < len(counts) else 0
        table.add_row(label, str(value), str(voxels), f"{voxels * millilitres:.1f}")
    console.print(table)
    latencies = {stage: seconds for stage, seconds in result.params["latencies"].items() if stage != "transform"}
    print("seconds: " + ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in latencies.items()))
    print(target)
    return mask


def _label_values(result: InferResult) -> dict[str, int]:
    """Value by structure. A model without labels of its own names none, and its mask has the value 1."""
    named = {label: value for label, value in result.params["label_names"].items() if value}
    return named or {"structure": 1}


def _draw(client: Client, file: Path | None, image: str, labels: Any, names: dict[str, int], to: Path) -> None:
    from rayapp.imaging.overlay import mask_overlay
    from rayapp.imaging.reader import read_volume

    with tempfile.TemporaryDirectory(prefix="rayapp-") as folder:
        source = file or client.download_image(image, Path(folder))
        volume = read_volume(source, max_bytes=MAX_BYTES)
    mask_overlay(volume, labels, names).save(to)


def next_image(
    strategy: Annotated[str, typer.Argument(metavar="STRATEGY", help="first, random, …")],
    server: Server = LOCAL,
    download: Annotated[Path | None, typer.Option(metavar="DIR", help="Download the image to this folder.")] = None,
    as_json: Json = False,
    token: Token = None,
) -> None:
    """Print the id of the image to label next, or with --download its file.

    If no image is left, print nothing and exit with status 3.
    """
    from rich.console import Console

    from rayapp.client import Client

    with Client(server, token=token) as client:
        sample = client.next_sample(strategy)
        if sample is None:
            print("rayapp: no image is left to label", file=sys.stderr)
            raise typer.Exit(NOTHING_LEFT)
        if download is None:
            print_json(sample) if as_json else print(sample["id"])
            return
        download.mkdir(parents=True, exist_ok=True)
        with Console(stderr=True).status(f"fetching {sample['name']}…"):
            path = client.download_image(sample["id"], download)
        print(path)
