"""The same with a real archive behind: Orthanc's series in OHIF, and what is saved is in Orthanc as DICOM SEG."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayapp.config import ohif_folder
from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.geometry import index_to_mm
from rayapp.imaging.dicom_seg import read_segmentation
from rayapp.imaging.reader import read_grid
from tests.browser.conftest import Viewer
from tests.gateway.conftest import Serve, Served
from tests.imaging.grids import AFFINES, MAX, voxels
from tests.imaging.series import write_series
from tests.orthanc import Orthanc, needs_orthanc, orthanc

pytestmark = [pytest.mark.browser, needs_orthanc]

SHAPE = (13, 11, 7)
SERIES, STUDY = "1.2.3.1", "1.2.3.1.9"


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("archive")
    with orthanc(folder) as running:
        array = voxels(SHAPE) % 200
        running.store(write_series(folder / SERIES, array, AFFINES["oblique-flipped"], series=SERIES, study=STUDY))
        yield running


@pytest.fixture(scope="module")
def archived(serve: Serve, held: Orthanc) -> Served:
    return serve(archived=True, dicomweb={"url": held.url}, ohif=ohif_folder())


def test_segment_and_save_in_an_archive(archived: Served, held: Orthanc, viewer: Viewer, tmp_path: Path):
    page = viewer.page
    page.goto(f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={STUDY}")
    assert viewer.said() == "ready; nothing was saved of this image yet"
    file = archived.store.image(SERIES).path
    assert "bright" in viewer.press("segment")
    labels, values = viewer.voxels(file)
    np.testing.assert_array_equal(labels, values > 100)
    assert 0 < labels.sum() < labels.size

    world = index_to_mm(read_grid(file).affine, [9, 2, 5]) * [-1, -1, 1]
    viewer.show(world)
    viewer.use("foreground")
    assert "at 9, 2, 5" in viewer.click(world)
    assert viewer.press("save") == "saved"
    assert isinstance(archived.store, DicomwebDatastore)
    end = time.monotonic() + 30
    while archived.store.unsent():
        assert time.monotonic() < end
        time.sleep(0.05)
    (found,) = held.client().search_for_series(STUDY, search_filters={"Modality": "SEG"})
    (seg,) = held.client().retrieve_series(STUDY, found["0020000E"]["Value"][0])
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    stored = read_segmentation(tmp_path / "seg.dcm", read_grid(file), max_bytes=MAX)
    np.testing.assert_array_equal(stored.array, labels)
    assert stored.names == {"bright": 1}

    page.reload()
    assert viewer.said() == "ready; this is what was saved"
    np.testing.assert_array_equal(viewer.voxels(file)[0], labels)
    viewer.picture("archive")
