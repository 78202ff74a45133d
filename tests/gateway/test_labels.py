"""`/datastore/label`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayapp.imaging.reader import read_segmentation
from rayapp.imaging.volume import Segmentation
from rayapp.imaging.writer import encode_segmentation
from tests.gateway.conftest import AFFINE, SHAPE, Served, write_label


def test_a_label_comes_back_byte_for_byte_under_its_tag(gateway: Served, tmp_path: Path):
    file = write_label(tmp_path / "label.nii.gz")
    answer = gateway.save(
        "ct_a", file, "version_1", client_id="c", model="bright", segmentationMeta={"status": "flagged"}
    )
    assert answer.json() == {"image": "ct_a", "label": "ct_a", "app": "was told"}
    back = gateway.get("/datastore/label?label=ct_a&tag=version_1")
    assert back.content == file.read_bytes()
    assert back.headers["Content-Disposition"] == 'attachment; filename="ct_a.nii.gz"'
    info = gateway.get("/datastore/label/info?label=ct_a&tag=version_1").json()
    assert info["segmentationMeta"] == {"status": "flagged"}
    assert (info["client_id"], info["user"], info["name"]) == ("c", "admin", "ct_a.nii.gz")
    assert gateway.staged() == []


def test_a_hook_that_fails_does_not_look_like_a_lost_save(gateway: Served, tmp_path: Path):
    answer = gateway.save("ct_a", write_label(tmp_path / "label.nii.gz"), "trouble")
    assert answer.json() == {"image": "ct_a", "label": "ct_a"}
    assert gateway.store.label("ct_a", "trouble").id == "ct_a"


def test_no_tag_and_an_empty_one_mean_final(gateway: Served, tmp_path: Path):
    file = write_label(tmp_path / "label.nii.gz")
    for query in ("", "&tag="):
        with file.open("rb") as body:
            assert gateway.put(f"/datastore/label?image=ct_b{query}", files={"label": body}).status_code == 200
    assert [r.number for r in gateway.store.revisions("ct_b", "final")] == [1, 2]


def test_a_new_save_replaces_the_info_but_not_ts_and_name(gateway: Served, tmp_path: Path):
    file = write_label(tmp_path / "label.nii.gz")
    gateway.save("ct_a", file, "t", one=1)
    gateway.save("ct_a", file, "t", two=2, ts=5, name="x", user="somebody")
    info = gateway.get("/datastore/label/info?label=ct_a&tag=t").json()
    assert "one" not in info
    assert (info["two"], info["name"], info["user"]) == (2, "ct_a.nii.gz", "admin")
    assert info["ts"] > 5


def test_the_model_version_that_made_it_is_kept(gateway: Served, tmp_path: Path):
    gateway.save("ct_a", write_label(tmp_path / "label.nii.gz"), "made", model_version="v7")
    assert gateway.store.revisions("ct_a", "made")[-1].model_version == "v7"


def test_raw_voxels_of_ohif_become_nifti_on_the_images_grid(gateway: Served):
    voxels = np.random.default_rng(3).integers(0, 3, SHAPE, dtype=np.uint8)
    files = {"label": ("label.bin", voxels.tobytes(order="F"))}
    assert gateway.put("/datastore/label?image=ct_a&tag=raw", files=files).status_code == 200
    label = gateway.store.label("ct_a", "raw")
    read = read_segmentation(label.path, max_bytes=1 << 20)
    assert label.ext == ".nii.gz"
    assert np.array_equal(read.array, voxels)
    assert np.allclose(read.affine, AFFINE, atol=1e-4)
    for body in (voxels.tobytes()[1:], voxels.tobytes() + b"0", b""):
        answer = gateway.put("/datastore/label?image=ct_a&tag=raw", files={"label": ("label.bin", body)})
        assert answer.status_code == 422
        assert "13 x 11 x 7" in answer.json()["detail"]
    assert gateway.staged() == []


def test_a_segmentation_that_slicer_cropped_is_put_back_onto_the_images_grid(gateway: Served, tmp_path: Path):
    corner, size = np.array([4, 3, 2]), (5, 4, 3)
    affine = AFFINE.copy()
    affine[:3, 3] += AFFINE[:3, :3] @ corner
    part = np.zeros(size, np.uint8)
    part[1, 2, 0] = 3
    file = tmp_path / "crop.seg.nrrd"
    file.write_bytes(encode_segmentation(Segmentation(array=part, affine=affine, names={"liver": 3}), ".seg.nrrd"))
    assert gateway.save("ct_a", file, "crop").status_code == 200
    fetched = tmp_path / "whole.seg.nrrd"
    fetched.write_bytes(gateway.send("GET", "/datastore/label?label=ct_a&tag=crop").content)
    whole = read_segmentation(fetched, max_bytes=1 << 20)
    assert whole.shape == SHAPE
    assert np.argwhere(whole.array).tolist() == [[5, 5, 2]]
    assert whole.names == {"liver": 3}


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((11, 13, 7), AFFINE),
        (SHAPE, AFFINE @ np.diag([-1.0, 1, 1, 1])),
        (SHAPE, AFFINE @ np.diag([2.0, 1, 1, 1])),
        (SHAPE, AFFINE + np.pad([[0.5]], ((0, 3), (3, 0)))),
    ],
    ids=["another shape", "flipped", "another spacing", "shifted by part of a voxel"],
)
def test_a_label_on_another_grid_is_refused_and_stored_nowhere(
    gateway: Served, tmp_path: Path, shape: tuple[int, ...], affine: np.ndarray
):
    answer = gateway.save("ct_a", write_label(tmp_path / "label.nii.gz", shape, affine), "grid")
    assert answer.status_code == 422
    assert "label" in answer.json()["detail"]
    assert gateway.send("HEAD", "/datastore/label?image=ct_a&tag=grid").status_code == 404
    assert gateway.staged() == []


@pytest.mark.parametrize("keep", [0, 30, 60, -9])
def test_a_truncated_label_leaves_the_one_before(gateway: Served, tmp_path: Path, keep: int):
    file = write_label(tmp_path / "label.nii.gz")
    whole = file.read_bytes()
    gateway.save("ct_a", file, "kept")
    file.write_bytes(whole[:keep])
    assert gateway.save("ct_a", file, "kept").status_code == 422
    assert gateway.get("/datastore/label?label=ct_a&tag=kept").content == whole
    assert gateway.staged() == []


@pytest.mark.parametrize(
    ("query", "name", "params", "status", "said"),
    [
        ("image=nothing", "l.nii.gz", "{}", 404, "no image 'nothing'"),
        ("image=..%2Fct_a", "l.nii.gz", "{}", 400, "not a valid name"),
        ("image=ct_a&tag=..%2F..%2Fx", "l.nii.gz", "{}", 400, "tag '../../x' is not a valid name"),
        ("image=ct_a&tag=a%2Fb", "l.nii.gz", "{}", 400, "not a valid name"),
        ("image=ct_a&tag=t", "l.nii.gz", '{"x": ', 400, "params is not valid JSON"),
        ("image=ct_a&tag=t", "l.nii.gz", '{"x": "\\ud800"}', 400, "params is not valid JSON"),
        ("image=ct_a&tag=t", "l.json", "{}", 422, "not of a supported format"),
        ("tag=t", "l.nii.gz", "{}", 422, "image"),
    ],
)
def test_what_is_wrong_with_a_save_is_said(
    gateway: Served, tmp_path: Path, query: str, name: str, params: str, status: int, said: str
):
    tags = gateway.store.status()["label_tags"]
    files = {"label": (name, write_label(tmp_path / "l.nii.gz").read_bytes())}
    answer = gateway.put(f"/datastore/label?{query}", files=files, data={"params": params})
    assert answer.status_code == status
    assert said in json.dumps(answer.json()["detail"])
    assert gateway.store.status()["label_tags"] == tags
    assert gateway.staged() == []


def test_a_save_without_a_file_is_told_which_field_it_lacks(gateway: Served):
    answer = gateway.put("/datastore/label?image=ct_a", data={"params": "{}"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "label"]


def test_infos_are_merged_also_as_the_reviewer_sends_them(gateway: Served, tmp_path: Path):
    gateway.save("ct_a", write_label(tmp_path / "label.nii.gz"), "info", one=1)
    query = "label=ct_a&tag=info"
    assert gateway.put(f"/datastore/label/info?{query}", data={"info": '{"two": 2, "ts": 0}'}).text == "null"
    assert gateway.put(f"/datastore/updatelabelinfo?{query}", data={"params": '{"three": 3}'}).text == "null"
    info = gateway.get(f"/datastore/label/info?{query}").json()
    assert (info["one"], info["two"], info["three"], info["user"]) == (1, 2, 3, "admin")
    assert info["ts"] > 0
    assert gateway.get("/datastore/label/info?label=ct_a&tag=none").json() == {}
    assert gateway.get("/datastore/label/info?label=nothing&tag=final").json() == {}
    assert gateway.put("/datastore/label/info?label=ct_a&tag=none", data={"info": "{}"}).status_code == 404
    assert gateway.put(f"/datastore/label/info?{query}", data={"info": "7"}).status_code == 400


def test_labels_are_there_or_not_and_can_be_deleted(gateway: Served, tmp_path: Path):
    gateway.save("ct_a", write_label(tmp_path / "label.nii.gz"), "brief")
    assert gateway.send("HEAD", "/datastore/label?image=ct_a&tag=brief").status_code == 200
    for _ in range(2):
        assert gateway.send("DELETE", "/datastore/label?id=ct_a&tag=brief").json() == {}
    assert gateway.send("HEAD", "/datastore/label?image=ct_a&tag=brief").status_code == 404
    assert "no label under tag 'brief'" in gateway.get("/datastore/label?label=ct_a&tag=brief").json()["detail"]
    assert gateway.send("DELETE", "/datastore/label?id=ct_a").status_code == 422
    assert gateway.get("/datastore/label?label=ct_a").status_code == 422
