"""Folders that grew for years: a bad entry is named with its reason, and everything else is served."""

from __future__ import annotations

import os
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp.datastore import folder_scan, left_out, watch
from rayapp.datastore.interfaces import Author
from rayapp.datastore.reconcile import Reconciler
from rayapp.errors import Disabled
from tests.datastore.saves import Open
from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import write_series
from tests.waiting import until

LATIN_1 = os.fsdecode(b"M\xfcller.nii.gz")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _old_and_empty(path: Path) -> None:
    path.touch()
    os.utime(path, (1e9, 1e9))


def _socket(path: Path) -> None:
    here = Path.cwd()  # a socket's path may have 107 bytes only
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "link-to-itself": (_loop, "link to itself"),
    "dangling-link": (lambda path: path.symlink_to("nowhere"), "not there"),
    "pipe": (os.mkfifo, "not a regular file"),
    "socket": (_socket, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "empty": (_old_and_empty, "empty"),
}
every_bad = pytest.mark.parametrize(("make", "reason"), BAD.values(), ids=BAD.keys())


@every_bad
def test_a_bad_entry_at_the_top_is_named_and_the_rest_is_served(
    make: Callable[[Path], None], reason: str, studies: Path, open_store: Open
) -> None:
    make(studies / "bad.nii.gz")
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    problems = store.status()["problems"]
    assert list(problems) == ["bad.nii.gz"]
    assert reason in problems["bad.nii.gz"]
    assert not store._opened.scan()  # it asks for no further look


@every_bad
def test_a_bad_entry_in_a_folder_of_slices_is_named_and_the_series_is_served(
    make: Callable[[Path], None], reason: str, studies: Path, open_store: Open, tmp_path: Path
) -> None:
    write_series(studies / "patient" / "deep", voxels(), AFFINES["oblique"], series="1.2.3")
    make(studies / "patient" / "deep" / "bad.dcm")
    (studies / "alone").mkdir()
    make(studies / "alone" / "bad.dcm")
    store = open_store(studies)
    assert store.image_ids() == ["1.2.3", "ct_a", "ct_b", "mr_c"]
    problems = store.status()["problems"]
    assert reason in problems["patient/deep/bad.dcm"]
    assert reason in problems["alone/bad.dcm"]
    assert not store._opened.scan()


@every_bad
def test_a_bad_label_is_named_and_the_others_are_taken(
    make: Callable[[Path], None], reason: str, studies: Path, open_store: Open
) -> None:
    final = studies / "labels" / "final"
    final.mkdir(parents=True)
    (final / "ct_a.nii.gz").write_bytes(b"label")
    make(final / "ct_b.nii.gz")
    store = open_store(studies)
    assert set(store.labels("ct_a")) == {"final"}
    assert not store.labels("ct_b")
    assert reason in store.status()["problems"]["labels/final/ct_b.nii.gz"]
    assert not store._opened.scan()


def test_a_name_that_is_not_utf_8_is_left_out_as_image_and_as_label(studies: Path, open_store: Open) -> None:
    (studies / LATIN_1).write_bytes(b"x")
    for tag in ("final", os.fsdecode(b"\xfc")):
        (studies / "labels" / tag).mkdir(parents=True)
    (studies / "labels" / "final" / LATIN_1).write_bytes(b"x")
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert store.status()["problems"] == {
        r"M\xfcller.nii.gz": "its name is not UTF-8: rename it",
        r"labels/final/M\xfcller.nii.gz": "its name is not UTF-8: rename it",
    }
    store._opened.reconciler.concerns([studies / LATIN_1, studies / "labels" / "final" / LATIN_1])


def test_a_series_in_a_folder_whose_name_is_not_utf_8_is_served_by_its_uid(studies: Path, open_store: Open) -> None:
    write_series(studies / os.fsdecode(b"M\xfcller"), voxels(), AFFINES["oblique"], series="1.2.3")
    store = open_store(studies)
    assert "1.2.3" in store.image_ids()
    assert "problems" not in store.status()


def test_a_folder_that_may_not_be_read_is_named(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    (studies / "lost+found").mkdir()
    scandir = os.scandir

    def forbidding(path: object = ".") -> object:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", forbidding)
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert "may not read it" in store.status()["problems"]["lost+found"]


def test_a_folder_that_vanishes_while_it_is_read_is_no_image(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    (studies / "going").mkdir()
    (studies / "going" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    holds = folder_scan._holds_dicom

    def vanish(folder: str) -> bool:
        found = holds(folder)
        subprocess.run(["rm", "-r", folder], check=True)
        return found

    monkeypatch.setattr(folder_scan, "_holds_dicom", vanish)
    assert open_store(studies).image_ids() == ["ct_a", "ct_b", "mr_c"]


def test_two_files_of_one_stem_are_one_image_and_the_other_is_named_with_it(studies: Path, open_store: Open) -> None:
    for name in ("ct_a.nii", "CT_A.nii.gz"):
        (studies / name).write_bytes(b"x")
    store = open_store(studies)
    assert store.image_ids() == ["CT_A", "ct_a", "ct_b", "mr_c"]
    assert store.image("ct_a").path.name == "ct_a.nii.gz"
    assert store.status()["problems"] == {"ct_a.nii": "it would be the same image as ct_a.nii.gz: rename one of them"}


def test_an_entry_that_becomes_good_is_served_and_until_then_nothing_is_scanned(
    studies: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watch, "IDLE_MS", 50)
    monkeypatch.setattr(left_out, "SHARE", 1.0)
    scans: list[int] = []
    rounds: list[int] = []
    scan, concerns = Reconciler.scan, Reconciler.concerns
    monkeypatch.setattr(Reconciler, "scan", lambda *args: scans.append(1) or scan(*args))
    monkeypatch.setattr(Reconciler, "concerns", lambda *args: rounds.append(1) or concerns(*args))
    _old_and_empty(studies / "empty.nii.gz")
    (studies / "annexed.nii.gz").symlink_to(tmp_path / "object")  # as DataLad leaves a file that it has not got yet
    store = open_store(studies, watch=True)
    until(lambda: len(rounds) > 5)
    assert len(scans) == 2  # at opening, and once the watch has begun
    (tmp_path / "object").write_bytes(b"voxels")
    until(lambda: "annexed" in store.image_ids())
    (studies / "empty.nii.gz").write_bytes(b"voxels")
    until(lambda: "empty" in store.image_ids())
    assert "problems" not in store.status()


@pytest.mark.parametrize("name", ["a.mgz", "a.MNC"])
def test_an_image_of_another_format_is_named(name: str, studies: Path, open_store: Open) -> None:
    (studies / name).write_bytes(b"x")
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert store.status()["problems"] == {name: "its format is not read: save it as .nii.gz or .nrrd"}


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.hdr"])
def test_a_header_without_its_voxels_is_named_and_served_once_they_are_there(
    name: str, studies: Path, open_store: Open, tmp_path: Path
) -> None:
    sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkInt16), str(studies / name))
    (voxels,) = (path for path in studies.glob("a.*") if path.name != name)
    voxels.rename(tmp_path / voxels.name)
    store = open_store(studies)
    assert store.image_ids() == ["ct_a", "ct_b", "mr_c"]
    assert "the file with the voxels is not beside its header" in store.status()["problems"][name]
    (tmp_path / voxels.name).rename(voxels)
    store.close()
    store = open_store(studies)
    assert store.image_ids() == ["a", "ct_a", "ct_b", "mr_c"]
    assert "problems" not in store.status()
    with pytest.raises(Disabled, match="two files"):
        store.remove_image("a")
    target = tmp_path / "data.zip"
    staged = store.stage(".nrrd")
    staged.write_bytes(b"a label")
    store.save_label("a", "final", staged, ".nrrd", info={}, author=Author())
    store.archive(target)
    assert {f"image/{name}", f"image/{voxels.name}"} <= set(zipfile.ZipFile(target).namelist())


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.hdr"])
def test_a_header_whose_voxels_would_block_or_lie_elsewhere_is_left_out(
    name: str, studies: Path, open_store: Open
) -> None:
    sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkInt16), str(studies / name))
    (voxels,) = (path for path in studies.glob("a.*") if path.name != name)
    voxels.unlink()
    os.mkfifo(voxels)
    (studies / "b.mhd").write_text("ObjectType = Image\nNDims = 1\n")
    pipe = "it is not a regular file (a pipe, a socket or a device)"
    assert open_store(studies).status()["problems"] == {
        name: pipe,
        voxels.name: pipe,
        "b.mhd": "not a MetaImage file: it has no field ElementDataFile",
    }


def test_voxels_without_their_header_and_labels_in_two_files_are_named(studies: Path, open_store: Open) -> None:
    (studies / "a.IMG").write_bytes(b"x")
    (studies / "labels" / "final").mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.Image(3, 4, 5, sitk.sitkUInt8), str(studies / "labels" / "final" / "ct_a.mhd"))
    assert open_store(studies).status()["problems"] == {
        "a.IMG": "its header, the .hdr, is not beside it: copy it too",
        "labels/final/ct_a.mhd": "a label must be in one file: save it as .nii.gz or .nrrd",
    }
