"""A studies folder as DICOMweb, read by dicomweb-client, and which image a series is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from rayapp.geometry import index_to_mm
from rayapp.imaging import mask_codec
from rayapp.imaging.dicom_instances import uid_of
from rayapp.imaging.reader import read_volume
from tests.gateway.conftest import AFFINE, SHAPE, Serve, Served, voxels, write_image, write_label

LEFT = AFFINE * [-1, 1, 1, 1]
"""The other handedness."""


@pytest.fixture(scope="module")
def client(gateway: Served) -> DICOMwebClient:
    write_image(gateway.settings.studies / "left.nii.gz", affine=LEFT)
    gateway.store.refresh()
    return DICOMwebClient(gateway.url + "/dicom-web")


def slices(client: DICOMwebClient, image: str) -> list[Dataset]:
    found = client.retrieve_series_metadata(uid_of("study", image), uid_of("series", image))
    return [Dataset.from_json(one) for one in found]


def test_studies_are_listed_by_name_in_pages(client: DICOMwebClient):
    def names(**filters: str) -> list[str]:
        found = client.search_for_studies(search_filters=filters)
        return [str(Dataset.from_json(study).PatientName) for study in found]

    assert names() == ["ct_a", "ct_b", "ct_ü", "left"]
    assert names(PatientName="*T_*") == ["ct_a", "ct_b", "ct_ü"]
    assert names(PatientName="ct_?", PatientID="*b") == ["ct_b"]
    assert names(PatientName="[lc]*") == []
    assert names(StudyInstanceUID=uid_of("study", "ct_b")) == ["ct_b"]
    page = client.search_for_studies(limit=2, offset=1)
    assert [str(Dataset.from_json(study).PatientID) for study in page] == ["ct_b", "ct_ü"]


def test_a_new_image_is_found_and_one_removed_is_gone(serve: Serve):
    gateway = serve()
    client = DICOMwebClient(gateway.url + "/dicom-web")
    assert len(client.search_for_studies()) == 3
    write_image(gateway.settings.studies / "late.nii.gz")
    gateway.store.refresh()
    assert gateway.get("/viewer/image?image=late").json()["series"] == uid_of("series", "late")
    gateway.app.state.series._listed = -10.0
    assert len(slices(client, "late")) == SHAPE[2]
    gateway.store.remove_image("late")
    assert gateway.get(f"/dicom-web/studies/{uid_of('study', 'late')}/series").status_code == 404


@pytest.mark.parametrize(("image", "affine"), [("ct_a", AFFINE), ("left", LEFT)])
def test_frames_are_the_images_slices_at_their_places(client: DICOMwebClient, image: str, affine: np.ndarray):
    datasets = sorted(slices(client, image), key=lambda one: one.InstanceNumber)
    assert [len(datasets), datasets[0].Rows, datasets[0].Columns] == [SHAPE[2], SHAPE[1], SHAPE[0]]
    reversed_ = np.linalg.det(affine[:3, :3]) < 0
    for number, dataset in enumerate(datasets):
        (frame,) = client.retrieve_instance_frames(
            dataset.StudyInstanceUID,
            dataset.SeriesInstanceUID,
            dataset.SOPInstanceUID,
            [1],
            media_types=("application/octet-stream",),
        )
        k = SHAPE[2] - 1 - number if reversed_ else number
        plane = np.frombuffer(frame, "<i2").reshape(SHAPE[1], SHAPE[0])
        np.testing.assert_array_equal(plane.T, voxels()[:, :, k])
        position = np.array(dataset.ImagePositionPatient, float) * [-1, -1, 1]
        np.testing.assert_allclose(position, index_to_mm(affine, [0, 0, k]), atol=1e-6)


def test_what_is_not_of_a_study_is_not_found_in_it(gateway: Served, client: DICOMwebClient):
    a, b = uid_of("study", "ct_a"), uid_of("series", "ct_b")
    instance = uid_of("instance", "ct_a", 0)
    own = f"/dicom-web/studies/{a}/series/{uid_of('series', 'ct_a')}/instances"
    for path in (
        f"/dicom-web/studies/{a}/series/{b}/metadata",
        f"/dicom-web/studies/{b}/series",
        "/dicom-web/studies/1.2.3/series",
        "/dicom-web/studies/..%2fct_a/series",
        f"{own}/{uid_of('instance', 'ct_b', 0)}/metadata",
        f"{own}/{instance}/frames/2",
    ):
        assert gateway.get(path).status_code == 404, path
    assert gateway.get(f"{own}/{instance}/frames/x").status_code == 422
    assert gateway.get("/dicom-web/studies?limit=-1").status_code == 400


def test_a_replaced_file_shows_its_own_voxels(serve: Serve):
    gateway = serve()
    client = DICOMwebClient(gateway.url + "/dicom-web")
    assert slices(client, "ct_a")[0].Columns == SHAPE[0]
    write_image(gateway.settings.studies / "ct_a.nii.gz", voxels()[:5])
    assert slices(client, "ct_a")[0].Columns == 5
    homes = list((gateway.settings.workspace / "viewer").glob("*/*"))
    assert len(homes) == 1  # the earlier state was swept


def test_a_series_leads_to_its_image_and_to_where_its_voxels_lie(gateway: Served, client: DICOMwebClient):
    for query in (f"series={uid_of('series', 'left')}", "image=left"):
        said = gateway.get(f"/viewer/image?{query}").json()
        assert (said["image"], said["study"]) == ("left", uid_of("study", "left"))
        assert tuple(said["shape"]) == SHAPE
        np.testing.assert_allclose(said["affine"], LEFT, atol=1e-6)
    assert gateway.get("/viewer/image?series=1.2.3").status_code == 404
    assert gateway.get("/viewer/image").status_code == 400
    assert gateway.get("/viewer/image?image=../x").status_code == 400


def test_a_saved_label_comes_back_as_packed_bits(gateway: Served, tmp_path: Path):
    file = write_label(tmp_path / "x.nii.gz")
    assert gateway.get("/viewer/label?image=ct_b&tag=final").status_code == 404
    gateway.save("ct_b", file, label_info=[{"name": "bright", "idx": 1}]).raise_for_status()
    answer = gateway.get("/viewer/label?image=ct_b&tag=final")
    np.testing.assert_array_equal(mask_codec.decode(answer.content), read_volume(file, max_bytes=1 << 20).array[0])
    assert gateway.get("/viewer/image?image=ct_b").json()["labels"] == ["final"]


@pytest.mark.parametrize("image", ["ct_a", "left"])
def test_a_client_of_monai_label_may_name_the_series_and_counts_its_slices(
    gateway: Served, client: DICOMwebClient, image: str
):
    answer = gateway.infer(f"image={uid_of('series', image)}&output=box")
    answer.raise_for_status()
    expected = voxels() > 100
    if image == "left":
        expected = expected[:, :, ::-1]
    np.testing.assert_array_equal(mask_codec.decode(answer.content), expected)
