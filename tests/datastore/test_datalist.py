"""A data list names images where they are; images of several files have several channels."""

import json

import nibabel
import numpy as np
import pytest

from rayapp.commands import WrongUsage
from rayapp.commands.server import settings
from rayapp.datastore.datalist import open_datalist
from rayapp.datastore.local import LocalDatastore
from rayapp.errors import BadRequest
from rayapp.imaging.reader import read_volume

AFFINE = np.array([[0.0, -1.6, 1.8, 20.0], [1.5, 0.0, 0.0, -7.0], [0.0, 1.2, 2.4, 4.0], [0, 0, 0, 1]])
SHAPE = (5, 7, 4)
MIB = 1 << 20


def image(path, seed, affine=AFFINE, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 200, SHAPE).astype(dtype)
    nibabel.Nifti1Image(voxels, affine).to_filename(path)
    return voxels


@pytest.fixture
def data(tmp_path):
    """Two patients with four sequences each, one more image with a label."""
    made = {}
    for patient in ("p1", "p2"):
        for number, name in enumerate(("t1", "t1c", "t2", "flair")):
            path = tmp_path / "data" / patient / f"{name}.nii.gz"
            made[patient, name] = image(path, hash((patient, number)) % 1000, dtype=np.float32 if number else np.int16)
    made["ct"] = image(tmp_path / "data" / "ct.nii.gz", 5)
    image(tmp_path / "data" / "ct_seg.nii.gz", 6, dtype=np.uint8)
    return made


def write(tmp_path, listed):
    path = tmp_path / "data" / "list.json"
    path.write_text(json.dumps(listed))
    return path


def four(patient, **more):
    return {"image": [f"{patient}/{name}.nii.gz" for name in ("t1", "t1c", "t2", "flair")], **more}


def test_files_stay_where_they_are_and_several_become_one_image(tmp_path, data):
    listed = {
        "name": "mine",
        "labels": {"0": "background"},
        "training": [four("p1"), {"image": "ct.nii.gz", "label": "ct_seg.nii.gz"}],
        "testing": [four("p2", id="second"), "p1/t2.nii.gz", "p2/t2.nii.gz"],
    }
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*.nii.gz")}
    folder = open_datalist(write(tmp_path, listed), max_bytes=MIB)
    assert folder == tmp_path / "data" / "list.studies"
    store = LocalDatastore(folder, watch=False, settle=0.0)
    try:
        assert store.image_ids() == ["ct", "p1", "p1_t2", "p2_t2", "second"]
        assert store.status()["completed"] == 1
        for name, patient in (("p1", "p1"), ("second", "p2")):
            volume = read_volume(store.image(name).path, max_bytes=MIB)
            np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
            wanted = np.stack([data[patient, sequence] for sequence in ("t1", "t1c", "t2", "flair")])
            assert np.array_equal(volume.array, wanted)
        assert np.array_equal(read_volume(store.image("ct").path, max_bytes=MIB).array[0], data["ct"])
        store.remove_image("ct")
    finally:
        store.close()
    assert {path: path.read_bytes() for path in before} == before


def test_a_list_that_changed_is_followed_and_nothing_is_made_twice(tmp_path, data):
    path = write(tmp_path, [four("p1"), {"image": "ct.nii.gz", "label": "ct_seg.nii.gz"}])
    folder = open_datalist(path, max_bytes=MIB)
    made = (folder / "p1.nii").stat().st_ino
    (folder / "labels" / "final" / "ct.nii.gz").unlink()
    open_datalist(path, max_bytes=MIB)
    assert (folder / "p1.nii").stat().st_ino == made
    assert not (folder / "labels" / "final" / "ct.nii.gz").exists()
    newer = image(tmp_path / "data" / "p1" / "t2.nii.gz", 77)
    write(tmp_path, [four("p1"), four("p2")])
    open_datalist(path, max_bytes=MIB)
    assert np.array_equal(read_volume(folder / "p1.nii", max_bytes=MIB).array[2], newer)
    assert sorted(p.name for p in folder.iterdir()) == ["labels", "p1.nii", "p2.nii"]
    assert (tmp_path / "data" / "ct.nii.gz").exists()


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([{"image": "nothing.nii.gz"}], "'nothing.nii.gz', which does not exist"),
        ([{"image": "ct.nii.gz", "label": "no.nii.gz"}], "'no.nii.gz', which does not exist"),
        ({"training": []}, "lists no images"),
        ([{"image": 3}], "an image must be a path or a list of paths"),
        ([four("p1", id="a"), four("p2", id="a")], "would have the id 'a': give each an"),
        ([four("p1", id="../a")], "not a valid name"),
        ([{"image": ["ct.nii.gz", "moved.nii.gz"]}], "do not lie on one voxel grid"),
        ([{"image": "list.json"}], "not a supported image"),
    ],
)
def test_a_list_that_cannot_be_served_says_why(tmp_path, data, listed, said):
    image(tmp_path / "data" / "moved.nii.gz", 5, affine=np.eye(4))
    path = write(tmp_path, listed)
    with pytest.raises(BadRequest, match=said):
        open_datalist(path, max_bytes=MIB)


def test_the_command_takes_a_list_for_its_studies(tmp_path, data):
    path = write(tmp_path, [four("p1")])
    assert settings({"studies": path, "port": 0}).studies == tmp_path / "data" / "list.studies"
    path.write_text("{")
    with pytest.raises(WrongUsage, match=r"--studies: list.json cannot be read as JSON"):
        settings({"studies": path, "port": 0})
