"""`rayapp demo`: a server to try, with generated studies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rayapp.commands import server
from rayapp.downloads.ohif import is_prepared

STUDIES = 6
FIRST_SEED = 7_000_001
"""Seed of the first study; the shipped models were trained on seeds below a million."""


def demo(
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Folder for studies, labels and models.")] = Path(
        "rayapp-demo"
    ),
    port: server.Port = None,
    replicas: server.Replicas = None,
    num_cpus: server.Cpus = None,
) -> None:
    """Generate a few studies (unless they exist already), serve them, and print what to try."""
    studies = folder / "studies"
    images = make_studies(studies)
    click = inside_liver(FIRST_SEED)
    flags = {
        "studies": studies,
        "workspace": folder / "workspace",
        "port": port,
        "replicas": server.pair("--replicas", replicas, ":") if replicas else None,
        "num_cpus": num_cpus,
    }
    settings = server.settings({name: value for name, value in flags.items() if value is not None})
    precondition = "" if is_prepared(settings.ohif) else " (the viewer is there after `rayapp ohif install`)"

    def greet(url: str) -> None:
        print(_greeting(url, studies, images[0], click, precondition), file=sys.stderr, flush=True)

    server.serve(settings, greet)


def make_studies(folder: Path) -> list[str]:
    """Generate torso phantoms as `.nii.gz` files, unless they exist already.

    Returns:
        The ids of all images.
    """
    from rich.console import Console
    from rich.progress import track

    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"torso_{number}" for number in range(1, STUDIES + 1)]
    missing = [(name, FIRST_SEED + n) for n, name in enumerate(ids) if not (folder / f"{name}.nii.gz").exists()]
    if missing:
        for name, seed in track(missing, "generating studies", console=Console(stderr=True)):
            _generate(folder / f"{name}.nii.gz", seed)
    return ids


def _generate(file: Path, seed: int) -> None:
    import nibabel

    from rayapp.imaging.phantom import phantom

    volume, _ = phantom(seed)
    part = file.with_name(f".{file.name}")
    nibabel.Nifti1Image(volume.array[0], volume.affine).to_filename(part)
    part.replace(file)


def inside_liver(seed: int) -> str:
    """A click on the liver of the phantom with this seed: the voxel nearest to its centre of mass, as `i,j,k`."""
    import numpy as np

    from rayapp.imaging.phantom import ORGANS, phantom

    voxels = np.argwhere(phantom(seed)[1].array == ORGANS["liver"])
    nearest = voxels[np.linalg.norm(voxels - voxels.mean(0), axis=1).argmin()]
    return ",".join(str(index) for index in nearest)


def _greeting(url: str, studies: Path, image: str, click: str, precondition: str) -> str:
    flag = "" if url == "http://127.0.0.1:8000" else f" --server {url}"
    return f"""
rayapp serves {STUDIES} generated torsos from {studies}. Try, in another terminal:

  list the models     curl {url}/info/
  choose an image     rayapp next random{flag}
  segment it          rayapp infer segmentation {image} --picture torso.png{flag}
  with a click        rayapp infer deepedit {image} --click liver={click}{flag}

In a browser{precondition}: {url}
In 3D Slicer, with the MONAI Label extension, the server's address is {url}
The HTTP API is described at {url}/docs
Ctrl-C stops the server; images and saved labels are kept."""
