"""`/datastore/image` and `/datastore/`."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import requests
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from rayapp.imaging.reader import read_volume
from tests.gateway.conftest import Served, write_image, write_label


def upload(
    gateway: Served, file: Path, query: str = "", name: str | None = None, params: str = "{}"
) -> requests.Response:
    return gateway.put(
        f"/datastore/{query}", files={"file": (name or file.name, file.read_bytes())}, data={"params": params}
    )


def test_an_uploaded_image_comes_back_byte_for_byte(gateway: Served, tmp_path: Path):
    file = write_image(tmp_path / "new.nii.gz")
    answer = upload(gateway, file, params='{"client_id": "c", "ts": 5, "name": "other", "patient": 1}')
    assert (answer.status_code, answer.json()) == (200, {"image": "new"})
    back = gateway.get("/datastore/image?image=new")
    assert back.content == file.read_bytes()
    assert back.headers["Content-Disposition"] == 'attachment; filename="new.nii.gz"'
    assert back.headers["Content-Length"] == str(len(back.content))
    info = gateway.get("/datastore/image/info?image=new").json()
    assert info["ts"] > 5
    assert (info["name"], info["patient"], info["user"]) == ("new.nii.gz", 1, "admin")
    assert info["path"].endswith("new.nii.gz")
    assert gateway.staged() == []


def test_the_id_may_be_given_and_both_paths_take_uploads(gateway: Served, tmp_path: Path):
    file = write_image(tmp_path / "x.nii.gz")
    assert upload(gateway, file, "?image=Volume_1").json() == {"image": "Volume_1"}
    answer = gateway.put(
        "/datastore/image?image=Volume_2", files={"file": ("C:\\data\\scan.nii.gz", file.read_bytes())}
    )
    assert answer.json() == {"image": "Volume_2"}


def test_a_windows_path_counts_by_its_last_part(gateway: Served, tmp_path: Path):
    file = write_image(tmp_path / "x.nii.gz")
    body = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="D:\\scans\\Jane\\win.nii.gz"\r\n\r\n'
        + file.read_bytes()
        + b"\r\n--B--\r\n\r\n"
    )
    answer = gateway.put("/datastore/", data=body, headers={"Content-Type": "multipart/form-data; boundary=B"})
    assert answer.json() == {"image": "win"}
    assert gateway.store.image("win").path.read_bytes() == file.read_bytes()


def test_an_image_is_there_or_not_and_has_its_checksum(gateway: Served):
    digest = hashlib.sha256(gateway.store.image("ct_a").path.read_bytes()).hexdigest()
    there = "/datastore/image?image=ct_a"
    for query in ("", f"&check_sum={digest}", f"&check_sum=SHA256:{digest}"):
        assert gateway.send("HEAD", there + query).status_code == 200
    assert gateway.send("HEAD", there + "&check_sum=SHA256:00").status_code == 404
    assert gateway.send("HEAD", "/datastore/image?image=nothing").status_code == 404


def test_names_beyond_ascii_are_sent_as_rfc_5987_says(gateway: Served):
    answer = gateway.get("/datastore/image", params={"image": "ct_ü"})
    assert answer.headers["Content-Disposition"] == "attachment; filename*=utf-8''ct_%C3%BC.nii.gz"


def test_an_id_that_is_taken_is_a_conflict(gateway: Served, tmp_path: Path):
    before = gateway.store.image("ct_a").path.read_bytes()
    assert upload(gateway, write_image(tmp_path / "ct_a.nii.gz", np.ones((3, 3, 3), np.int16))).status_code == 409
    assert gateway.store.image("ct_a").path.read_bytes() == before
    assert gateway.staged() == []


@pytest.mark.parametrize(
    ("query", "name", "params", "status", "said"),
    [
        ("?image=../x", "x.nii.gz", "{}", 400, "not a valid name"),
        ("?image=%2Ftmp%2Fx", "x.nii.gz", "{}", 400, "not a valid name"),
        ("", "..nii.gz", "{}", 400, "not a valid name"),
        ("", "x.nii.gz/../../y", "{}", 422, "not of a supported format"),
        ("", "x.txt", "{}", 422, "not of a supported format"),
        ("?image=ok", "x.nii.gz", "[]", 400, "params must be a JSON object"),
        ("?image=ok", "x.nii.gz", "{", 400, "params is not valid JSON"),
    ],
)
def test_a_name_or_params_that_cannot_be_are_refused(
    gateway: Served, tmp_path: Path, query: str, name: str, params: str, status: int, said: str
):
    total = gateway.store.status()["total"]
    answer = upload(gateway, write_image(tmp_path / "x.nii.gz"), query, name, params)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert gateway.store.status()["total"] == total
    assert gateway.staged() == []


@pytest.mark.parametrize("keep", [0, 1, 40, 400, -9])
def test_a_truncated_image_is_refused_and_stored_nowhere(gateway: Served, tmp_path: Path, keep: int):
    file = write_image(tmp_path / "cut.nii.gz")
    file.write_bytes(file.read_bytes()[:keep])
    answer = upload(gateway, file)
    assert answer.status_code == 422
    assert str(gateway.settings.studies) not in answer.text
    assert gateway.get("/datastore/image?image=cut").status_code == 404
    assert gateway.staged() == []
    assert not list(gateway.settings.studies.glob("cut*"))


def test_an_upload_without_a_file_is_told_which_field_it_lacks(gateway: Served):
    for given in ({}, {"data": {"file": "text"}}, {"files": {"other": b"x"}}, {"files": {"file": ("", b"")}}):
        answer = gateway.put("/datastore/image?image=none", **given)
        assert answer.status_code == 422
        (problem,) = answer.json()["detail"]
        assert problem["loc"] == ["body", "file"]
    answer = gateway.put("/datastore/image?image=none", data=b"voxels", headers={"Content-Type": "text/plain"})
    assert (answer.status_code, "multipart/form-data" in answer.json()["detail"]) == (400, True)


def test_infos_are_merged_and_keep_what_is_the_servers(gateway: Served):
    before = gateway.get("/datastore/image/info?image=ct_b").json()
    assert (
        gateway.put("/datastore/image/info?image=ct_b", data={"info": '{"dice": 1, "ts": 0, "name": "x"}'}).text
        == "null"
    )
    assert gateway.get("/datastore/image/info?image=ct_b").json() == {**before, "dice": 1, "user": "admin"}
    assert gateway.get("/datastore/image/info?image=nothing").json() == {}
    assert gateway.put("/datastore/image/info?image=nothing", data={"info": "{}"}).status_code == 404
    assert gateway.put("/datastore/image/info?image=ct_b", data={"info": "["}).status_code == 400


def test_a_deleted_image_is_gone(gateway: Served, tmp_path: Path):
    for path in ("/datastore/image", "/datastore/"):
        upload(gateway, write_image(tmp_path / "gone.nii.gz"))
        assert gateway.send("DELETE", f"{path}?id=gone").json() == {}
        assert gateway.send("DELETE", f"{path}?id=gone").status_code == 404
    assert gateway.send("DELETE", "/datastore/image").status_code == 422


def test_a_folder_of_dicom_files_is_downloaded_as_one_file_and_has_no_checksum(
    gateway: Served, tmp_path: Path, dicom_series: Path
):
    shutil.copytree(dicom_series, gateway.settings.studies / "series")
    gateway.store.refresh()
    gateway.store.refresh()
    assert gateway.send("HEAD", "/datastore/image?image=series").status_code == 200
    answer = gateway.get("/datastore/image?image=series")
    assert answer.headers["content-disposition"].endswith('filename="series.nii"')
    (tmp_path / "series.nii").write_bytes(answer.content)
    got, there = (read_volume(path, max_bytes=1 << 20) for path in (tmp_path / "series.nii", dicom_series))
    np.testing.assert_array_equal(got.array, there.array)
    np.testing.assert_allclose(got.affine, there.affine, atol=1e-4)
    assert gateway.staged() == []
    assert gateway.send("HEAD", "/datastore/image?image=series&check_sum=00").status_code == 404
    assert gateway.infer("image=series&output=json").status_code == 200


@pytest.fixture
def dicom_series(tmp_path: Path) -> Path:
    folder = tmp_path / "dicom"
    folder.mkdir()
    study, series = generate_uid(), generate_uid()
    for number in range(3):
        slice_ = Dataset()
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.Modality = study, series, "CT"
        slice_.Rows, slice_.Columns, slice_.InstanceNumber = 5, 4, number + 1
        slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.0 * number]
        slice_.PixelSpacing, slice_.SliceThickness = [1.0, 1.0], 2.0
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.PixelData = np.full((5, 4), number, np.int16).tobytes()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def test_the_store_is_counted_listed_and_shown_whole(gateway: Served, tmp_path: Path):
    assert gateway.save("ct_a", write_label(tmp_path / "label.nii.gz")).status_code == 200
    stats = gateway.get("/datastore/").json()
    again, own = gateway.get("/datastore/?output=stats").json(), gateway.store.status()
    sizes = [given.pop("storage") for given in (stats, again, own)]
    assert stats == again == own
    assert sizes[0].keys() == sizes[1].keys() == sizes[2].keys()  # they grow as the log is written
    (pair,) = gateway.get("/datastore/?output=train").json()
    assert pair == {
        "image": str(gateway.store.image("ct_a").path),
        "label": str(gateway.store.label("ct_a", "final").path),
    }
    whole = gateway.get("/datastore/?output=all").json()
    assert whole["objects"]["ct_a"]["labels"]["final"]["info"]["name"] == "ct_a.nii.gz"
    assert "base_path" not in whole
    assert gateway.get("/datastore/?output=some").status_code == 422


def test_finished_pairs_come_as_a_zip_that_leaves_nothing_behind(gateway: Served, tmp_path: Path):
    for image in ("ct_a", "ct_b"):
        gateway.save(image, write_label(tmp_path / "label.nii.gz"))
    answer = gateway.get("/datastore/dataset?limit_cases=1")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="dataset.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["image/ct_a.nii.gz", "label/ct_a.nii.gz", "metadata.json"]
    with zipfile.ZipFile(io.BytesIO(gateway.get("/datastore/dataset").content)) as archive:
        assert len(archive.namelist()) == 5
    assert gateway.staged() == []


def test_no_finished_pair_is_not_a_zip(serve):
    empty = serve()
    answer = empty.get("/datastore/dataset")
    assert answer.status_code == 404
    assert "final label" in answer.json()["detail"]
    assert empty.staged() == []
