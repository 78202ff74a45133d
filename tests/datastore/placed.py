"""Studies in an archive: a real Orthanc with three series, behind a front that can misbehave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
from pydicom import Dataset

from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.datastore.interfaces import Author
from tests.front import Front
from tests.imaging.grids import labels
from tests.orthanc import Orthanc

CT, MR, US, TILTED = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.4"

NAMES = {"liver": 1, "left kidney": 2, "spot": 3}

INFO = {"label_info": [{"name": name, "idx": value} for name, value in NAMES.items()], "model": "deepedit"}


@dataclass
class Placed:
    """An archive with a few series, the front before it, and how to open a datastore on it."""

    archive: Orthanc
    front: Front
    open: Callable[..., DicomwebDatastore]
    folder: Path


def save_label(
    store: DicomwebDatastore, image_id: str = CT, tag: str = "final", array: Any = None, **info: Any
) -> None:
    staged = store.stage(".nii.gz")
    image = nibabel.load(store.image(image_id).path)
    nibabel.Nifti1Image(labels() if array is None else array, image.affine).to_filename(staged)
    store.save_label(image_id, tag, staged, ".nii.gz", info={**INFO, **info}, author=Author(user="anna"))


def segmentations(archive: Orthanc) -> list[Dataset]:
    client = archive.client()
    found = client.search_for_series(search_filters={"Modality": "SEG"}, fields=["StudyInstanceUID"])
    return [
        dataset
        for item in found
        for dataset in client.retrieve_series(item["0020000D"]["Value"][0], item["0020000E"]["Value"][0])
    ]
