"""`rayapp start --studies URL`: the real server on a real archive, to the segmentation in the archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayapp.client import Client
from rayapp.imaging.dicom_seg import read_segmentation
from rayapp.imaging.phantom import phantom
from rayapp.imaging.reader import read_grid
from tests.conftest import SHAPE, started
from tests.imaging.grids import MAX
from tests.imaging.series import write_series
from tests.orthanc import Orthanc, needs_orthanc
from tests.waiting import until

pytestmark = [needs_orthanc, pytest.mark.slow]
SERIES, STUDY = "1.2.3.1", "1.2.3"


def test_a_series_of_the_archive_is_segmented_and_the_label_is_in_the_archive(archive: Orthanc, tmp_path: Path) -> None:
    volume, _ = phantom(5_000_001, shape=SHAPE)
    archive.store(write_series(tmp_path / "ct", volume.array[0], volume.affine, series=SERIES, study=STUDY))
    with started(tmp_path, "--studies", archive.url) as server, Client(server.url) as client:
        assert client.next_sample("first")["id"] == SERIES
        result = client.infer("segmentation", SERIES, params={"result_extension": ".nii.gz"}, to=tmp_path / "m.nii.gz")
        assert result.labels().any()
        names = [{"name": name, "idx": value} for name, value in result.params["label_names"].items() if value]
        client.save_label(SERIES, tmp_path / "m.nii.gz", params={"model": "segmentation", "label_info": names})
        stored = until(lambda: client.label_info(SERIES).get("SeriesInstanceUID"))
        (found,) = archive.client().retrieve_series(STUDY, stored)
        found.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
        label = read_segmentation(tmp_path / "seg.dcm", read_grid(tmp_path / "ct"), max_bytes=MAX)
        named = {name: (label.array == value).sum() for name, value in label.names.items()}
        wanted = {name: (result.labels() == v).sum() for name, v in result.params["label_names"].items() if v}
        assert named == {name: count for name, count in wanted.items() if count}
        np.testing.assert_array_equal(label.array > 0, result.labels() > 0)
