"""rayapp.datastore.sessions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import tarfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from rayapp.datastore.sessions import SessionStore, base_name
from rayapp.errors import BadRequest, NotFound, RayappError, TooLarge, Unreadable
from rayapp.files import archives
from rayapp.imaging.reader import read_volume

CAP = 1 << 20
SHAPE = (5, 4, 3)
Members = dict[str, bytes]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def store(root: Path) -> SessionStore:
    return SessionStore(root, expiry=3600, max_volume=CAP)


def nifti() -> bytes:
    voxels = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    data: bytes = nibabel.Nifti1Image(voxels, np.diag([1.0, 2, 3, 1])).to_bytes()
    return data


def series() -> Members:
    """Three slices of 5 columns and 4 rows."""
    study, name = generate_uid(), generate_uid()
    files = {}
    for number in range(3):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        piece = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        piece.SOPClassUID, piece.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        piece.StudyInstanceUID, piece.SeriesInstanceUID, piece.Modality = study, name, "CT"
        piece.Rows, piece.Columns, piece.PixelSpacing = 4, 5, [1, 1]
        piece.ImageOrientationPatient, piece.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2 * number]
        piece.SamplesPerPixel, piece.PhotometricInterpretation = 1, "MONOCHROME2"
        piece.BitsAllocated, piece.BitsStored, piece.HighBit, piece.PixelRepresentation = 16, 16, 15, 1
        piece.RescaleSlope, piece.RescaleIntercept = 1, 0
        piece.PixelData = np.full((4, 5), number, np.int16).tobytes()
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, piece, enforce_file_format=True)
        files[f"IM{number}.dcm"] = buffer.getvalue()
    return files


def zipped(members: Members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: Members, mode: str = "w:", **header: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for key, value in header.items():
                setattr(member, key, value)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def put(store: SessionStore, members: Members) -> Path:
    folder = store.stage()
    for name, data in members.items():
        (folder / base_name(name)).write_bytes(data)
    return folder


def create(store: SessionStore, members: Members, **how: object) -> str:
    return str(store.create(put(store, members), **how)["session_id"])  # type: ignore[arg-type]


def left(root: Path) -> list[str]:
    """Everything under the root but the staging folder itself."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path != root / ".staging")


def age(root: Path, session: str, seconds: float) -> None:
    """As if the session had last been used so long ago."""
    then = time.time() - seconds
    os.utime(root / session / "meta.info", (then, then))


def test_one_file_becomes_a_session_with_the_info_that_clients_expect(store: SessionStore, root: Path) -> None:
    before = int(time.time())
    answer = store.create(put(store, {"C:\\scans\\liver.nii": nifti()}))
    session, info = answer["session_id"], answer["session_info"]
    assert set(info) == {"name", "path", "image", "meta", "create_ts", "last_access_ts", "expiry"}
    assert (info["name"], info["image"], info["meta"], info["expiry"]) == (session, "liver.nii", {}, 3600)
    assert before <= info["create_ts"] <= time.time()
    assert store.get(session, touch=False) == info
    assert store.image(session).read_bytes() == nifti()
    assert left(root) == [session, f"{session}/liver.nii", f"{session}/meta.info"]
    assert json.loads((root / session / "meta.info").read_text()) == info


def test_sessions_are_readable_by_their_owner_only(store: SessionStore, root: Path) -> None:
    session = create(store, {"a.nii": nifti()})
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / session).stat().st_mode) == 0o700


def test_several_files_are_one_dicom_series(store: SessionStore) -> None:
    image = store.image(create(store, series()))
    assert image.is_dir()
    assert read_volume(image, max_bytes=CAP).array.shape[-3:] == SHAPE


@pytest.mark.parametrize("pack", [zipped, tarred, lambda members: tarred(members, "w:gz")])
@pytest.mark.parametrize(
    "make", [lambda: {"deep/er/a.nii": nifti()}, lambda: {f"x/{n}": d for n, d in series().items()}]
)
def test_archives_are_unpacked_on_demand(
    store: SessionStore, root: Path, pack: Callable[[Members], bytes], make: Callable[[], Members]
) -> None:
    session = create(store, {"upload": pack({**make(), "x/.DS_Store": b"hidden"})}, uncompress=True)
    assert read_volume(store.image(session), max_bytes=CAP).array.shape[-3:] == SHAPE
    assert not [name for name in left(root) if name.startswith(".staging") or "DS_Store" in name or "upload" in name]


def link(kind: bytes) -> bytes:
    return tarred({"a.nii": b""}, type=kind, linkname="/etc/passwd")


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo("a.nii")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, nifti())  # so that only its kind can be why it is refused
    return buffer.getvalue()


def zip_lzma() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.nii", nifti())
    return buffer.getvalue()


BAD_ARCHIVES = {
    "parent in zip": lambda: zipped({"../a.nii": nifti()}),
    "parent in tar": lambda: tarred({"x/../../a.nii": nifti()}),
    "absolute in zip": lambda: zipped({"/a.nii": nifti()}),
    "absolute in tar": lambda: tarred({"/a.nii": nifti()}),
    "windows drive": lambda: zipped({"C:\\a.nii": nifti()}),
    "symbolic link in tar": lambda: link(tarfile.SYMTYPE),
    "hard link in tar": lambda: link(tarfile.LNKTYPE),
    "pipe in tar": lambda: link(tarfile.FIFOTYPE),
    "symbolic link in zip": zip_link,
    "unbounded method": zip_lzma,
    "one name twice": lambda: zipped({"x/a.nii": nifti(), "y/a.nii": nifti()}),
    "truncated zip": lambda: zipped({"a.nii": nifti()})[:-30],
    "truncated tar": lambda: tarred({"a.nii": nifti()})[:600],
    "truncated tar.gz": lambda: tarred({"a.nii": nifti()}, "w:gz")[:-30],
    "flipped byte in zip": lambda: flipped(zipped({"a.nii": nifti()}), 60),
    "long header in tar": lambda: tarred({"a" * 70_000 + ".nii": nifti()}),
    "no archive": nifti,
    "empty": lambda: b"",
    "no image in it": lambda: zipped({"readme.txt": b"hello"}),
}


def flipped(data: bytes, where: int) -> bytes:
    return data[:where] + bytes([data[where] ^ 0xFF]) + data[where + 1 :]


@pytest.mark.parametrize("make", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_a_bad_archive_is_refused_and_leaves_nothing(
    store: SessionStore, root: Path, tmp_path: Path, make: Callable[[], bytes]
) -> None:
    with pytest.raises(Unreadable):
        create(store, {"upload.zip": make()}, uncompress=True)
    assert left(root) == []
    assert [path.name for path in tmp_path.iterdir()] == ["sessions"]


@pytest.mark.parametrize("pack", [zipped, lambda members: tarred(members, "w:gz")])
def test_an_archive_that_swells_over_the_cap_is_refused(
    store: SessionStore, root: Path, pack: Callable[[Members], bytes]
) -> None:
    bomb = pack({f"{number}.dcm": b"\0" * (CAP // 3) for number in range(4)})
    assert len(bomb) < CAP // 50
    with pytest.raises(TooLarge, match="max_volume"):
        create(store, {"bomb": bomb}, uncompress=True)
    assert left(root) == []


def test_an_archive_of_too_many_members_is_refused(store: SessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(TooLarge, match="2 members"):
        create(store, {"many.zip": zipped(series())}, uncompress=True)


BAD_UPLOADS: dict[str, tuple[Members, type[RayappError]]] = {
    "nothing": ({}, BadRequest),
    "truncated": ({"a.nii": nifti()[:-10]}, Unreadable),
    "unknown format": ({"a.txt": b"hello"}, Unreadable),
    "several that are no series": ({"a.nii": nifti(), "b.nii": nifti()}, Unreadable),
    "its own meta": ({"meta.info": b"{}"}, Unreadable),
}


@pytest.mark.parametrize(("members", "error"), BAD_UPLOADS.values(), ids=BAD_UPLOADS.keys())
def test_a_bad_upload_is_refused_and_leaves_nothing(
    store: SessionStore, root: Path, members: Members, error: type[RayappError]
) -> None:
    with pytest.raises(error):
        create(store, members)
    assert left(root) == []


def test_an_image_over_the_cap_is_refused(root: Path) -> None:
    with pytest.raises(TooLarge):
        create(SessionStore(root, expiry=60, max_volume=50), {"a.nii": nifti()})
    assert left(root) == []


def test_only_one_archive_is_unpacked_at_a_time(store: SessionStore) -> None:
    with pytest.raises(BadRequest, match="2 files"):
        create(store, {"a.zip": b"", "b.zip": b""}, uncompress=True)


@pytest.mark.parametrize("name", ["", "..", "a/..", "a\\..", "x/", ".hidden", "a\0b", "a\nb"])
def test_a_file_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        base_name(name)


@pytest.mark.parametrize(("asked", "given"), [(0, 3600), (-5, 3600), (60, 60), (10**9, 3600)])
def test_a_client_may_shorten_a_session_but_not_prolong_it(store: SessionStore, asked: int, given: int) -> None:
    info = store.create(put(store, {"a.nii": nifti()}), expiry=asked)["session_info"]
    assert info["expiry"] == given


def test_use_keeps_a_session_and_a_look_does_not(store: SessionStore, root: Path) -> None:
    session = create(store, {"a.nii": nifti()})
    age(root, session, 3000)
    before = store.get(session, touch=False)["last_access_ts"]
    assert before < time.time() - 2900
    assert store.get(session, touch=False)["last_access_ts"] == before
    assert store.get(session, touch=True)["last_access_ts"] > before + 2900
    age(root, session, 3000)
    store.image(session)
    assert store.get(session, touch=False)["last_access_ts"] > before + 2900


def test_an_expired_session_is_unknown_and_swept(store: SessionStore, root: Path) -> None:
    old, new = create(store, {"a.nii": nifti()}), create(store, {"a.nii": nifti()})
    age(root, old, 3700)
    for call in (lambda: store.get(old, touch=True), lambda: store.image(old), lambda: store.remove(old)):
        with pytest.raises(NotFound):
            call()
    assert store.sweep() == 1
    assert store.sweep() == 0
    assert left(root) == [new, f"{new}/a.nii", f"{new}/meta.info"]


def test_sweeping_takes_abandoned_uploads_and_leaves_running_ones(store: SessionStore, root: Path) -> None:
    abandoned, running = put(store, {"a.nii": b"half"}), put(store, {"a.nii": b"half"})
    for path in (abandoned / "a.nii", abandoned, running):
        os.utime(path, (1, 1))
    assert store.sweep() == 0
    assert not abandoned.exists()
    assert (running / "a.nii").exists()


def test_another_process_serves_and_ends_the_session(store: SessionStore, root: Path) -> None:
    session = create(store, {"a.nii": nifti()})
    other = SessionStore(root, expiry=60, max_volume=CAP)
    assert other.image(session).read_bytes() == nifti()
    assert other.remove(session)["name"] == session
    with pytest.raises(NotFound):
        store.get(session, touch=False)
    assert left(root) == []


SPOILED = {
    "parent": lambda _: "..",
    "staging": lambda _: ".staging",
    "empty": lambda _: "",
    "never given": lambda _: str(uuid.uuid4()),
    "other spelling": lambda name: f"{{{name}}}",
    "path": lambda name: f"{name}/../{name}",
    "folder": lambda name: f"{name}/",
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED.keys())
def test_an_id_is_a_known_uuid_or_unknown(store: SessionStore, spoil: Callable[[str], str]) -> None:
    session = create(store, {"a.nii": nifti()})
    for call in (lambda name: store.get(name, touch=True), store.image, store.remove):
        with pytest.raises(NotFound):
            call(spoil(session))


def test_of_many_that_end_a_session_one_does(store: SessionStore) -> None:
    session, ended = create(store, {"a.nii": nifti()}), []

    def end() -> None:
        with contextlib.suppress(NotFound):
            ended.append(store.remove(session))

    threads = [threading.Thread(target=end) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) == 1
