"""Real series in a real archive: what scanners, TCIA and others' tools wrote, shown, segmented, clicked and saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from rayapp.config import ohif_folder
from rayapp.geometry import index_to_mm
from rayapp.imaging.dicom_seg import read_segmentation
from rayapp.imaging.reader import read_grid
from tests.browser.conftest import Viewer
from tests.gateway.conftest import Serve, Served
from tests.imaging.test_dicom_seg import faults, needs_dciodvfy
from tests.orthanc import Orthanc, needs_orthanc, orthanc
from tests.real_data import real

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::UserWarning:highdicom"),  # real names are not always as they should be
    needs_orthanc,
    needs_dciodvfy,
]

MAX = 256 << 20
SERIES = {
    "mr": ("dicom_mr", "hippocrop_1"),
    "jpeg-2000-ct": ("totalseg", "example_ct_dicom"),
    "ct-of-three-slices": ("dcmqi_seg", "ct-3slice"),
}


def files_of(name: str) -> list[Path]:
    return sorted(path for path in real(*SERIES[name]).rglob("*") if path.is_file())


def identified(files: list[Path], folder: Path) -> list[Path]:
    """Copies with the UIDs that whoever made these files anonymous has emptied."""
    written = []
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.1", "1.2.3.1.1"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.1.1.{dataset.InstanceNumber}"
        written.append(folder / path.name)
        dataset.save_as(written[-1], enforce_file_format=True)
    return written


@pytest.fixture(scope="module")
def uids(tmp_path_factory: pytest.TempPathFactory, held: Orthanc) -> dict[str, tuple[str, str]]:
    """The study and the series of each, once the archive has them."""
    found = {}
    for name in SERIES:
        files = files_of(name)
        if not pydicom.dcmread(files[0], stop_before_pixels=True).SeriesInstanceUID:
            files = identified(files, tmp_path_factory.mktemp(name))
        held.store(files)
        header = pydicom.dcmread(files[0], stop_before_pixels=True)
        found[name] = header.StudyInstanceUID, header.SeriesInstanceUID
    return found


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("archive")) as running:
        yield running


@pytest.fixture(scope="module")
def archived(serve: Serve, held: Orthanc, uids: dict[str, tuple[str, str]]) -> Served:
    return serve(archived=True, dicomweb={"url": held.url}, ohif=ohif_folder(), max_volume=MAX, max_body=MAX)


@pytest.mark.parametrize("name", SERIES)
def test_a_real_series_is_shown_segmented_clicked_and_saved_on_its_very_voxels(
    archived: Served, uids: dict[str, tuple[str, str]], held: Orthanc, viewer: Viewer, tmp_path: Path, name: str
):
    study, series = uids[name]
    viewer.page.goto(f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={study}")
    assert viewer.said() == "ready; this image has no final label yet"
    file = archived.store.image(series).path
    _, values = viewer.voxels(file)
    np.testing.assert_array_equal(values, nibabel.load(file).get_fdata())
    viewer.press("segment")
    labels, _ = viewer.voxels(file)
    np.testing.assert_array_equal(labels, values > 100)
    assert 0 < labels.sum() < labels.size

    middle = np.array(labels.shape) // 2 + [1, -1, 0]
    world = index_to_mm(read_grid(file).affine, middle) * [-1, -1, 1]
    viewer.show(world)
    viewer.use("foreground")
    assert f"at {', '.join(map(str, middle))}" in viewer.click(world)
    viewer.picture(f"real-{name}")
    assert viewer.press("save") == "saved"
    viewer.page.locator(".rayapp .archived[data-state=there]").wait_for()
    (found,) = held.client().search_for_series(study, search_filters={"Modality": "SEG"})
    (seg,) = held.client().retrieve_series(study, found["0020000E"]["Value"][0])
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    assert faults(tmp_path / "seg.dcm") == []
    stored = read_segmentation(tmp_path / "seg.dcm", read_grid(file), max_bytes=MAX)
    np.testing.assert_array_equal(stored.array, labels)
    viewer.page.reload()
    assert viewer.said() == "ready; showing the final label"
    np.testing.assert_array_equal(viewer.voxels(file)[0], labels)
