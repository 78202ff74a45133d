"""Bytes of a file, no more and no fewer than announced."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rayapp.errors import Unreadable
from rayapp.imaging.payload import Codec, Payload, deflated, gzipped, inflated, opened

_DATA = np.random.default_rng(1).integers(0, 9, 5000, np.uint8)
every_codec = pytest.mark.parametrize("codec", ["gzip", "raw", "zlib"])
_PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "raw": bytes, "zlib": zlib.compress}


def _file(path: Path, data: bytes, codec: Codec) -> Path:
    path.write_bytes(_PACK[codec](data))
    return path


def _read_all(path: Path, size: int, codec: Codec = "gzip") -> None:
    with opened(path) as file:
        payload = Payload(file, codec)
        payload.read(size)
        payload.end()


@every_codec
def test_bytes_are_read_piece_by_piece_into_writable_buffers(tmp_path: Path, codec: Codec) -> None:
    with opened(_file(tmp_path / "x", _DATA.tobytes(), codec)) as file:
        payload = Payload(file, codec)
        first, rest = payload.read(10), payload.read(4990)
        payload.end()
    np.testing.assert_array_equal(np.concatenate([first, rest]), _DATA)
    assert rest.flags.writeable


@every_codec
def test_more_bytes_than_announced_are_refused(tmp_path: Path, codec: Codec) -> None:
    with opened(_file(tmp_path / "x", _DATA.tobytes(), codec)) as file:
        payload = Payload(file, codec)
        payload.read(4999)
        with pytest.raises(Unreadable, match="more data"):
            payload.end()


@every_codec
def test_a_size_the_file_cannot_hold_is_refused_before_it_is_allocated(tmp_path: Path, codec: Codec) -> None:
    with opened(_file(tmp_path / "x", _DATA.tobytes(), codec)) as file:
        payload = Payload(file, codec)
        tracemalloc.start()
        with pytest.raises(Unreadable, match="truncated"):
            payload.read(1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@pytest.mark.parametrize("codec", ["gzip", "zlib"])
def test_a_stream_that_is_cut_or_goes_on_is_refused(tmp_path: Path, codec: Codec) -> None:
    data = _PACK[codec](_DATA.tobytes())
    for wrong in (data[:-1], data[:-6], data[:100], data + b"\0\1"):
        (tmp_path / "x").write_bytes(wrong)
        with pytest.raises(Unreadable):
            _read_all(tmp_path / "x", 5000, codec)


def test_members_of_gzip_that_follow_each_other_are_one_stream(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b"ab") + gzip.compress(b"cd"))
    with opened(tmp_path / "x") as file:
        payload = Payload(file, "gzip")
        assert payload.read(4).tobytes() == b"abcd"
        payload.end()


def test_the_densest_gzip_is_read(tmp_path: Path) -> None:
    with opened(_file(tmp_path / "x", bytes(1 << 22), "gzip")) as file:
        assert not Payload(file, "gzip").read(1 << 22).any()


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
