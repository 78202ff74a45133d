"""`rayapp demo`: a server to try, with studies made here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rayapp.commands import server
from rayapp.downloads.ohif import is_prepared

STUDIES = 6
FIRST_SEED = 7_000_001
"""The shipped models were trained on seeds below a million."""


def demo(
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the studies and the labels lie.")] = Path(
        "rayapp-demo"
    ),
    port: server.Port = None,
    replicas: server.Replicas = None,
    num_cpus: server.Cpus = None,
) -> None:
    """Make a few studies (or find them again), serve them, and say what to try."""
    studies = folder / "studies"
    images = make_studies(studies)
    click = inside_liver(FIRST_SEED)
    given = {
        "studies": studies,
        "workspace": folder / "workspace",
        "port": port,
        "replicas": server.pair("--replicas", replicas, ":") if replicas else None,
        "num_cpus": num_cpus,
    }
    chosen = server.settings({name: value for name, value in given.items() if value is not None})
    first = "" if is_prepared(chosen.ohif) else ", after `rayapp ohif install`"

    def greet(url: str) -> None:
        print(_greeting(url, studies, images[0], click, first), file=sys.stderr, flush=True)

    server.serve(chosen, greet)


def make_studies(folder: Path) -> list[str]:
    """Generated torsos as `.nii.gz` files, those that are missing; the ids of all."""
    from rich.console import Console
    from rich.progress import track

    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"torso_{number}" for number in range(1, STUDIES + 1)]
    seeds = [(name, FIRST_SEED + at) for at, name in enumerate(ids) if not (folder / f"{name}.nii.gz").exists()]
    if seeds:
        for name, seed in track(seeds, "making studies", console=Console(stderr=True)):
            _make(folder / f"{name}.nii.gz", seed)
    return ids


def _make(file: Path, seed: int) -> None:
    import nibabel

    from rayapp.imaging.phantom import phantom

    volume, _ = phantom(seed)
    part = file.with_name(f".{file.name}")
    nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(part)
    part.replace(file)


def inside_liver(seed: int) -> str:
    """A click, i,j,k, on the liver of that torso: its voxel nearest to the middle."""
    import numpy as np

    from rayapp.imaging.phantom import ORGANS, phantom

    voxels = np.argwhere(phantom(seed)[1].array == ORGANS["liver"])
    nearest = voxels[np.linalg.norm(voxels - voxels.mean(0), axis=1).argmin()]
    return ",".join(str(index) for index in nearest)


def _greeting(url: str, studies: Path, image: str, click: str, first: str) -> str:
    flag = "" if url == "http://127.0.0.1:8000" else f" --server {url}"
    return f"""
rayapp serves {STUDIES} generated torsos from {studies}. Try, in another terminal:

  what is served      curl {url}/info/
  an image to label   rayapp next random{flag}
  a first mask        rayapp infer segmentation {image} --picture torso.png{flag}
  one with a click    rayapp infer deepedit {image} --click liver={click}{flag}

In a browser{first}: {url}/ohif/
In 3D Slicer, with the MONAI Label extension, the server's address is {url}
Its interface is described at {url}/docs
Ctrl-C stops it; images and saved labels stay."""
