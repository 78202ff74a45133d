"""Archives: what is unpacked, and to where; what is refused is tested through `tests/datastore/test_sessions.py`."""

from __future__ import annotations

import io
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from rayapp.errors import TooLarge, Unreadable
from rayapp.files.archives import _LONGEST_DIRECTORY, unpack


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_members_keep_their_paths(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tgz", {"./Task/images/a.nii": b"a", "Task/dataset.json": b"{}"})
    unpack(archive, tmp_path / "out", max_bytes=3)
    assert files(tmp_path / "out") == ["Task/dataset.json", "Task/images/a.nii"]


def test_members_go_where_they_are_placed_and_nowhere_without_a_place(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a.tgz", {"package/dist/app.js": b"1", "package/readme": b"2"})

    def place(path: PurePosixPath) -> PurePosixPath | None:
        return path.relative_to("package/dist") if path.is_relative_to("package/dist") else None

    read: list[tuple[int, int]] = []
    unpack(archive, tmp_path / "out", max_bytes=2, place=place, progress=lambda *at: read.append(at))
    assert files(tmp_path / "out") == ["app.js"]
    assert len(read) == 3
    assert read[-1] == (archive.stat().st_size, archive.stat().st_size)


def test_more_bytes_than_allowed_are_refused_with_the_settings_name(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match=r"more than 1 bytes: raise max_volume"):
        unpack(packed(tmp_path / "a.tgz", {"a": b"12"}), tmp_path / "out", max_bytes=1, setting="max_volume")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_an_archive_with_anything_but_files_is_refused_and_nothing_is_written(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        odd = tarfile.TarInfo("odd")
        odd.type, odd.linkname = kind, "/etc/passwd"
        archive.addfile(odd)
    with pytest.raises(Unreadable, match="a link, a device or a sparse file"):
        unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=1 << 20)
    assert files(tmp_path) == ["a.tar"]


def test_a_directory_of_millions_of_entries_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("x.nii", b"x" * 400)
    plain = (tmp_path / "plain.zip").read_bytes()
    start, end = plain.rfind(b"PK\1\2"), plain.rfind(b"PK\5\6")
    entries = plain[start:end] * (_LONGEST_DIRECTORY // (end - start) + 1)
    count = len(entries) // (end - start)
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(entries), start)
    place = struct.pack("<IIQI", 0x07064B50, 0, start + len(entries), 1)
    last = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    bomb = tmp_path / "bomb.zip"
    bomb.write_bytes(plain[:start] + entries + end64 + place + last)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="more than 20000 members"):
            unpack(bomb, tmp_path / "out", max_bytes=10**9)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
