"""The archive that other tests use is a real one: it is sent studies, finds them, and has them after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import SERIES, STUDY, write_series
from tests.orthanc import Orthanc, needs_orthanc
from tests.real_data import real

pytestmark = needs_orthanc


def test_what_is_stored_is_found_and_read_back_also_after_a_restart(archive: Orthanc, tmp_path: Path) -> None:
    archive.store(write_series(tmp_path / "series", voxels(), AFFINES["oblique"], modality="MR"))
    archive.stop()
    archive.start()
    client = archive.client()
    (found,) = client.search_for_series(search_filters={"Modality": "MR"})
    assert found["0020000E"]["Value"] == [SERIES]
    slices = client.retrieve_series(STUDY, SERIES)
    assert {piece.pixel_array.T.tobytes() for piece in slices} == {
        np.ascontiguousarray(voxels()[:, :, k]).tobytes() for k in range(voxels().shape[2])
    }


def test_a_real_series_is_stored(archive: Orthanc) -> None:
    archive.store(sorted(real("dicom_mr", "hippocrop_1").iterdir())[:3])
    assert len(archive.client().search_for_instances()) == 3
