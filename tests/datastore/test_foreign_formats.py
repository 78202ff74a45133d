"""Files that look like images and are not read: each has a reason that says what to do, and others have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayapp.datastore.foreign_formats import why_not_read
from tests.datastore.saves import Open

SERVED = ["ct_a", "ct_b", "mr_c"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.mgz", "format"),
        ("A.MNC", "format"),
        ("a.BRIK", "format"),
        ("a.tif", "format"),
        ("a.npy", "format"),
        ("a.nii.bz2", "compressed"),
        ("a.nii.xz", "compressed"),
        ("a.nrrd.gz", "compressed"),
        ("a.dcm.gz", "compressed"),
        ("a.nii.zip", "compressed"),
        ("study.zip", "archive"),
        ("study.tar.gz", "archive"),
        ("a.nii.gz.part", "did not finish"),
        ("a.nii.gz.crdownload", "did not finish"),
        ("a.nii (1).gz", "rename"),
        ("a.nii.gz (2)", "rename"),
    ],
)
def test_a_name_like_an_images_has_a_reason(name: str, words: str) -> None:
    assert words in str(why_not_read(name))


@pytest.mark.parametrize(
    "name",
    ["a.json", "a.nii.gz.md5", "README", "participants.tsv", "affine.mat", "a.bval", "a.png", "notes.docx", "a.gz"],
)
def test_what_is_no_image_has_none(name: str) -> None:
    assert why_not_read(name) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"/annex/objects/MD5E-s123--abc.nii.gz\n", "datalad get"),
    ],
)
def test_a_pointer_to_a_file_that_was_not_fetched_is_left_out_until_it_is(
    content: bytes, words: str, studies: Path, open_store: Open
) -> None:
    (studies / "bad.nii").write_bytes(content)
    (studies / "slices").mkdir()
    (studies / "slices" / "1.dcm").write_bytes(content)
    store = open_store(studies)
    assert store.image_ids() == SERVED
    problems = store.status()["problems"]
    assert problems.keys() == {"bad.nii", "slices/1.dcm"}
    assert all(words in reason for reason in problems.values())
    (studies / "bad.nii").write_bytes(b"voxels" * 1000)
    store.refresh()
    assert store.image_ids() == ["bad", *SERVED]


def test_images_in_subfolders_are_named_by_the_folder_at_the_top(studies: Path, open_store: Open) -> None:
    for folder in ("bids/sub-1/anat", "bids/sub-2/anat", ".hidden"):
        (studies / folder).mkdir(parents=True)
        (studies / folder / "T1w.nii.gz").write_bytes(b"voxels")
    store = open_store(studies)
    assert store.image_ids() == SERVED
    assert store.status()["problems"] == {
        "bids": "images in it are not served (2): move or link them to the top of the studies folder"
    }
