"""The packed form of label maps: what goes in comes out, and nothing else is accepted."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rayapp.errors import RayappError, TooLarge, Unreadable
from rayapp.imaging import mask_codec
from tests.imaging.grids import labels

Mask = npt.NDArray[Any]
_HEAD = struct.Struct("<4sBB3I3I3II")


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    """Two masks of one shape, with values of 1 to 16 bits, in either order in memory."""
    shape = draw(arrays.array_shapes(min_dims=3, max_dims=3, max_side=9))
    most = draw(st.sampled_from((1, 2, 3, 7, 255, 256, 65535)))
    dtype = np.uint8 if most < 256 else np.uint16
    values = st.sampled_from(sorted({0, 1, most // 2, most}))
    one, two = (draw(arrays.arrays(dtype, shape, elements=values)) for _ in range(2))
    return np.array(one, order=draw(st.sampled_from("CF"))), np.array(two, order=draw(st.sampled_from("CF")))


@given(pairs())
@settings(max_examples=150, deadline=None)
def test_a_mask_comes_back(masks: tuple[Mask, Mask]) -> None:
    labels, _ = masks
    found = mask_codec.decode(mask_codec.encode(labels))
    np.testing.assert_array_equal(found, labels)
    assert found.dtype == (np.uint8 if labels.max() < 256 else np.uint16)


@given(pairs())
@settings(max_examples=150, deadline=None)
def test_what_changed_comes_back_onto_the_previous_mask(masks: tuple[Mask, Mask]) -> None:
    labels, previous = masks
    before = previous.copy()
    found = mask_codec.decode(mask_codec.encode(labels, previous), onto=previous)
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_array_equal(previous, before)


@given(pairs(), st.integers(0, 200), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_a_flipped_byte_gives_a_mask_or_a_plain_refusal(masks: tuple[Mask, Mask], at: int, by: int) -> None:
    data = bytearray(mask_codec.encode(masks[0]))
    data[at % len(data)] ^= by
    with contextlib.suppress(RayappError):
        found = mask_codec.decode(bytes(data), max_bytes=1 << 20)
        assert (found.dtype.kind, found.ndim) == ("u", 3)


def test_the_bytes_are_those_of_the_specification() -> None:
    labels = np.zeros((10, 20, 30), np.uint8)
    labels[2, 3, 4], labels[4, 3, 4] = 1, 2
    data = mask_codec.encode(labels)
    assert _HEAD.unpack(data[:46]) == (b"RMSK", 1, 2, 10, 20, 30, 2, 3, 4, 3, 1, 1, len(data) - 46)
    import zlib

    assert zlib.decompress(data[46:]) == bytes([0b001, 0b100])


def test_nothing_changed_is_a_header_alone() -> None:
    assert len(mask_codec.encode(labels(), labels())) == 46
    assert not mask_codec.decode(mask_codec.encode(np.zeros((3, 4, 5), np.uint8))).any()


def test_a_truncated_mask_is_unreadable_wherever_it_is_cut() -> None:
    data = mask_codec.encode(labels())
    for cut in range(len(data)):
        with pytest.raises(Unreadable):
            mask_codec.decode(data[:cut])


def test_a_payload_that_holds_more_or_less_than_announced_is_unreadable() -> None:
    import zlib

    for nbytes in (0, 1, 3, 1 << 20):
        payload = zlib.compress(bytes(nbytes))
        head = _HEAD.pack(b"RMSK", 1, 1, 4, 4, 4, 0, 0, 0, 4, 4, 1, len(payload))
        with pytest.raises(Unreadable):
            mask_codec.decode(head + payload)


def test_a_huge_shape_is_too_large_before_anything_is_allocated() -> None:
    head = _HEAD.pack(b"RMSK", 1, 0, 65535, 65535, 65535, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(TooLarge):
        mask_codec.decode(head)


def test_a_box_outside_the_mask_is_unreadable() -> None:
    data = bytearray(mask_codec.encode(np.ones((4, 4, 4), np.uint8)))
    data[18] = 1
    with pytest.raises(Unreadable, match="does not fit"):
        mask_codec.decode(bytes(data))


def test_a_mask_of_another_shape_cannot_be_changed() -> None:
    with pytest.raises(Unreadable, match="the previous mask"):
        mask_codec.decode(mask_codec.encode(labels()), onto=np.zeros((4, 4, 4), np.uint8))


@pytest.mark.parametrize("wrong", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 2), np.int16)], ids=["2d", "signed"])
def test_what_is_no_label_map_is_not_encoded(wrong: Mask) -> None:
    with pytest.raises(ValueError, match="three axes and an unsigned type"):
        mask_codec.encode(wrong)


def test_a_mask_in_text_is_read_for_its_image_only():
    mask = np.zeros((3, 4, 5), np.uint8, order="F")
    mask[1, 2, 3] = 7
    assert np.array_equal(mask_codec.from_text(mask_codec.to_text(mask), (3, 4, 5)), mask)
    for text, shape in (
        (mask_codec.to_text(mask), (5, 4, 3)),
        ("ü", (3, 4, 5)),
        ("AAAA", (3, 4, 5)),
        (mask_codec.to_text(mask), (1, 1, 1)),
    ):
        with pytest.raises((Unreadable, TooLarge)):
            mask_codec.from_text(text, shape)
