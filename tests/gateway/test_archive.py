"""The routes, and MONAI Label's own client, on studies that lie in a real archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient
from monailabel.client.client import MONAILabelClient

from rayapp.datastore.dicomweb import DicomwebDatastore
from rayapp.imaging.dicom_seg import encode, read_segmentation
from rayapp.imaging.reader import read_grid
from rayapp.imaging.volume import Segmentation
from tests.front import CUT, PLAIN, Front, front
from tests.gateway.conftest import Serve, Served
from tests.imaging.grids import AFFINES, MAX, voxels
from tests.imaging.series import edit, write_series
from tests.orthanc import Orthanc, needs_orthanc, orthanc
from tests.waiting import until

pytestmark = needs_orthanc

SHAPE = (13, 11, 7)
CT, OTHER = "1.2.3.1", "1.2.3.2"


def image() -> np.ndarray:
    """Some of it is brighter than 100, in no symmetric way."""
    return voxels(SHAPE) % 200


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("archive")
    with orthanc(folder) as running:
        for series in (CT, OTHER):
            files = write_series(folder / series, image(), AFFINES["left-handed"], series=series, study=f"{series}.9")
            running.store(files)
        yield running


@pytest.fixture(scope="module")
def before(held: Orthanc) -> Iterator[Front]:
    with front(held.root) as standing:
        yield standing


@pytest.fixture(scope="module")
def served(serve: Serve, before: Front) -> Served:
    return serve(archived=True, dicomweb={"url": before.url + "/dicom-web"})


@pytest.fixture
def store(served: Served) -> DicomwebDatastore:
    assert isinstance(served.store, DicomwebDatastore)
    return served.store


def _mask(held: Orthanc) -> np.ndarray:
    """The tests' model's mask of the series: slices in the order of the viewers."""
    return (image()[:, :, ::-1] > 100).astype(np.uint8)


def test_a_model_s_answer_as_dicom_seg_lies_on_its_voxels(served: Served, held: Orthanc, tmp_path: Path):
    answer = served.infer(f"image={CT}&output=dicom_seg", {"bright": [[1, 2, 3]]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "application/dicom"
    assert answer.headers["Content-Disposition"].endswith('.dcm"')
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    found = read_segmentation(tmp_path / "seg.dcm", read_grid(held.folder / CT), max_bytes=MAX)
    np.testing.assert_array_equal(found.array, _mask(held))
    assert found.names == {"bright": 1}
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert dataset.StudyInstanceUID == f"{CT}.9"
    assert served.staged() == []
    plain = served.infer(f"image={CT}&output=dicom_seg")
    (tmp_path / "plain.dcm").write_bytes(plain.content)
    assert pydicom.dcmread(tmp_path / "plain.dcm").SegmentSequence[0].SegmentAlgorithmType == "AUTOMATIC"


def test_the_client_of_slicer_lists_downloads_infers_saves_and_loads(
    served: Served, store: DicomwebDatastore, held: Orthanc, tmp_path: Path
):
    client = MONAILabelClient(served.url, str(tmp_path))
    info = client.info()
    assert info["datastore"]["total"] == 2
    sample = client.next_sample("first", {})
    assert sample["id"] == CT
    assert sample["name"] == f"{CT}.nii"
    assert {"Modality": "CT", "StudyInstanceUID": f"{CT}.9", "SeriesInstanceUID": CT}.items() <= sample.items()

    downloaded = tmp_path / sample["name"]
    downloaded.write_bytes(served.get(f"/datastore/image?image={CT}").content)
    grid = nibabel.load(downloaded)
    np.testing.assert_array_equal(grid.get_fdata(), image()[:, :, ::-1])
    np.testing.assert_allclose(grid.affine, read_grid(held.folder / CT).affine, atol=1e-4)

    file, params = client.infer("bright", CT, {"result_extension": ".nrrd"})
    assert params["label_names"] == {"background": 0, "bright": 1}
    assert Path(file).stat().st_size > 0

    label = tmp_path / "label.nii.gz"
    nibabel.Nifti1Image(_mask(held), grid.affine).to_filename(label)
    assert client.save_label(CT, str(label), params={"label_info": [{"name": "bright", "idx": 1}]})["label"] == CT
    again = client.download_label(CT, "final")
    np.testing.assert_array_equal(nibabel.load(again).get_fdata(), _mask(held))

    until(lambda: not store.unsent())
    info = served.get("/datastore/?output=all").json()["objects"][CT]["labels"]["final"]["info"]
    (dataset,) = held.client().retrieve_series(f"{CT}.9", info["SeriesInstanceUID"])
    dataset.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    found = read_segmentation(tmp_path / "seg.dcm", read_grid(held.folder / CT), max_bytes=MAX)
    np.testing.assert_array_equal(found.array, _mask(held))
    assert client.info()["datastore"]["completed"] == 1


def test_the_client_of_slicer_loads_what_others_segmented_in_the_archive(served: Served, held: Orthanc, tmp_path: Path):
    files = write_series(tmp_path / "third", image(), AFFINES["oblique"], series="1.2.3.3", study="1.2.3.3.9")
    drawn = Segmentation(array=(image() > 150).astype(np.uint8), affine=AFFINES["oblique"], names={"spot": 1})
    theirs = tmp_path / "theirs.dcm"
    theirs.write_bytes(encode(drawn, tmp_path / "third"))
    edit(theirs, Manufacturer="Somebody")
    held.store([*files, theirs])
    served.store.refresh()
    client = MONAILabelClient(served.url, str(tmp_path))
    assert served.get("/datastore/image?image=1.2.3.3").status_code == 200  # as Slicer opens it first
    found = nibabel.load(client.download_label("1.2.3.3", "original"))
    np.testing.assert_array_equal(found.get_fdata(), drawn.array)
    np.testing.assert_allclose(found.affine, drawn.affine, atol=1e-4)


def test_an_archive_away_is_a_clear_502_and_no_other_request_waits_for_it(served: Served, before: Front):
    before.way = CUT
    try:
        answer = served.infer(f"image={OTHER}")
        assert answer.status_code == 502
        assert "archive" in answer.json()["detail"]
        assert served.get("/info/").status_code == 200
        assert served.infer(f"image={CT}&output=json").status_code == 200  # it is here already
    finally:
        before.way = PLAIN
    assert served.infer(f"image={OTHER}&output=json").status_code == 200


def test_images_are_not_uploaded_past_the_archive(served: Served, tmp_path: Path):
    nibabel.Nifti1Image(image(), np.eye(4)).to_filename(tmp_path / "mine.nii.gz")
    with (tmp_path / "mine.nii.gz").open("rb") as body:
        answer = served.put("/datastore/?image=mine", files={"file": body}, data={"params": json.dumps({})})
    assert answer.status_code == 406
    assert served.staged() == []
    assert served.send("DELETE", f"/datastore/?id={CT}").status_code == 406


def test_a_series_stored_through_the_proxy_is_an_image_soon_after(served: Served, tmp_path: Path):
    client = DICOMwebClient(served.url + "/proxy/dicom", stow_url_prefix="stow")
    files = write_series(tmp_path / "new", image(), AFFINES["oblique"], series="1.2.3.9", study="1.2.3.9.9")
    client.store_instances([pydicom.dcmread(file) for file in files])
    until(lambda: "1.2.3.9" in served.store.image_ids())
    assert served.infer("image=1.2.3.9&output=json").status_code == 200
