"""Bytes of a file, no more and no fewer than announced."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from rayapp.errors import Unreadable
from rayapp.imaging.payload import Payload, deflated, gzipped, inflated, opened

_DATA = np.random.default_rng(1).integers(0, 9, 5000, np.uint8)
packed_or_not = pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])


def _file(path: Path, data: bytes, packed: bool) -> Path:
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def _read_all(path: Path, size: int) -> None:
    with opened(path) as file:
        payload = Payload(file, packed=True)
        payload.read(size)
        payload.end()


@packed_or_not
def test_bytes_are_read_piece_by_piece_into_writable_buffers(tmp_path: Path, packed: bool) -> None:
    with opened(_file(tmp_path / "x", _DATA.tobytes(), packed)) as file:
        payload = Payload(file, packed=packed)
        first, rest = payload.read(10), payload.read(4990)
        payload.end()
    np.testing.assert_array_equal(np.concatenate([first, rest]), _DATA)
    assert rest.flags.writeable


@packed_or_not
def test_more_bytes_than_announced_are_refused(tmp_path: Path, packed: bool) -> None:
    with opened(_file(tmp_path / "x", _DATA.tobytes(), packed)) as file:
        payload = Payload(file, packed=packed)
        payload.read(4999)
        with pytest.raises(Unreadable, match="more data"):
            payload.end()


@packed_or_not
def test_a_size_the_file_cannot_hold_is_refused_before_it_is_allocated(tmp_path: Path, packed: bool) -> None:
    with opened(_file(tmp_path / "x", _DATA.tobytes(), packed)) as file:
        payload = Payload(file, packed=packed)
        tracemalloc.start()
        with pytest.raises(Unreadable, match="truncated"):
            payload.read(1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


def test_members_of_gzip_that_follow_each_other_are_one_stream(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b"ab") + gzip.compress(b"cd"))
    with opened(tmp_path / "x") as file:
        payload = Payload(file, packed=True)
        assert payload.read(4).tobytes() == b"abcd"
        payload.end()


def test_the_densest_gzip_is_read(tmp_path: Path) -> None:
    with opened(_file(tmp_path / "x", bytes(1 << 22), packed=True)) as file:
        assert not Payload(file, packed=True).read(1 << 22).any()


@pytest.mark.parametrize("at", [-1, -6, 200])
def test_a_wrong_checksum_is_refused(tmp_path: Path, at: int) -> None:
    data = bytearray(gzip.compress(_DATA.tobytes()))
    data[at] ^= 0x10
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(Unreadable):
        _read_all(tmp_path / "x", 5000)


def test_others_can_read_what_is_packed_here() -> None:
    assert gzip.decompress(gzipped(_DATA)) == _DATA.tobytes()
    assert zlib.decompress(deflated(_DATA)) == _DATA.tobytes()
    np.testing.assert_array_equal(inflated(zlib.compress(_DATA.tobytes()), 5000), _DATA)


@pytest.mark.parametrize("size", [0, 4999, 5001, 1 << 40])
def test_a_zlib_stream_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(Unreadable):
        inflated(zlib.compress(_DATA.tobytes()), size)


def test_a_missing_file_is_refused_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(Unreadable) as caught, opened(tmp_path / "gone"):
        pass
    assert str(tmp_path) not in str(caught.value)
