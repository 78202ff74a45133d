"""Series of several volumes: split by the attribute that tells them apart, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from rayapp.imaging.dicom_parts import ATTRIBUTES, SliceKey, split


def _slice(position: list[float], *, plane: bool = False, **values: Any) -> Dataset:
    header = Dataset()
    header.ImagePositionPatient = position
    if plane:
        header.ImageOrientationPatient, header.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.5, 0.7]
        header.Rows, header.Columns = 4, 5
    for keyword, value in values.items():
        setattr(header, keyword, value)
    return header


def _keys(headers: list[Dataset]) -> dict[int, SliceKey | None]:
    return {number: SliceKey.of(header) for number, header in enumerate(headers)}


def _series(slices: int, **values: list[Any]) -> dict[int, SliceKey | None]:
    """A stack for each of the values; attributes of one value are the same in all."""
    count = max(map(len, values.values()), default=1)
    keys: dict[int, SliceKey | None] = {}
    for part in range(count):
        for place in range(slices):
            header = _slice([1, 2, place * 3])
            for keyword, each in values.items():
                value = each[part % len(each)]
                if value is not None:
                    setattr(header, keyword, value)
            keys[len(keys)] = SliceKey.of(header)
    return keys


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"EchoNumbers": [1, 2], "EchoTime": [4.5, 9]}, ["echo-1", "echo-2"]),
        ({"EchoTime": [4.5, 9.0]}, ["te-4.5", "te-9.0"]),
        ({"TemporalPositionIdentifier": [1, 2, 3]}, ["time-1", "time-2", "time-3"]),
        ({"AcquisitionNumber": [7, 8]}, ["acquisition-7", "acquisition-8"]),
        ({"DiffusionBValue": [0.0, 800.0], "AcquisitionNumber": [1, 1]}, ["b-0.0", "b-800.0"]),
        ({"ImageType": [["ORIGINAL", "M"], ["ORIGINAL", "P"]]}, ["type-ORIGINAL-M", "type-ORIGINAL-P"]),
        ({"FlipAngle": [2, 15]}, ["flip-15.0", "flip-2.0"]),
        ({"KVP": [80, 140]}, ["kvp-140.0", "kvp-80.0"]),
        ({"AcquisitionTime": ["120000", "120005"]}, ["at-120000", "at-120005"]),
        (
            {"EchoNumbers": [1, 1, 2, 2], "ImageType": [["M"], ["P"], ["M"], ["P"]]},
            ["echo-1_type-M", "echo-1_type-P", "echo-2_type-M", "echo-2_type-P"],
        ),
    ],
)
def test_a_series_is_split_by_what_tells_its_volumes_apart(values: dict[str, list[Any]], names: list[str]) -> None:
    parts = split(_series(4, **values))
    assert list(parts) == names
    assert sorted(parts.values()) == [list(range(4 * n, 4 * n + 4)) for n in range(len(names))]


@pytest.mark.parametrize(("tag", "kind"), [(0x0019100C, "IS"), (0x20011003, "FL"), (0x00431039, "IS")])
def test_b_values_of_scanners_older_than_the_standards_attribute_tell_volumes_apart(tag: int, kind: str) -> None:
    headers = [_slice([0, 0, place]) for _ in range(2) for place in range(3)]
    for number, header in enumerate(headers):
        header.add_new(tag, kind, 800 * (number // 3))
    assert list(split(_keys(headers)).values()) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("start", "step"), [(0.35, 1), (100, 1), (0.5, 2)], ids=["interleaved", "elsewhere", "thicker"]
)
def test_acquisitions_in_places_of_their_own_are_volumes_if_together_they_are_none(start: float, step: float) -> None:
    headers = [_slice([0, 0, place], plane=True, AcquisitionNumber=1) for place in range(4)]
    headers += [_slice([0, 0, start + place * step], plane=True, AcquisitionNumber=2) for place in range(3)]
    assert split(_keys(headers)) == {"acquisition-1": [0, 1, 2, 3], "acquisition-2": [4, 5, 6]}


def test_acquisitions_of_another_size_or_direction_are_volumes_of_their_own() -> None:
    headers = [_slice([0, 0, place], plane=True, AcquisitionNumber=1) for place in range(4)]
    larger = [_slice([0, 0, 4 + place], plane=True, AcquisitionNumber=2, Rows=8) for place in range(2)]
    assert list(split(_keys(headers + larger)).values()) == [[0, 1, 2, 3], [4, 5]]
    turned = [
        _slice([0, place, 9], plane=True, AcquisitionNumber=2, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
        for place in range(2)
    ]
    assert list(split(_keys(headers + turned)).values()) == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("missing", [4, 13])
def test_a_scan_in_steps_of_which_a_slice_is_missing_is_not_cut_into_its_steps(missing: int) -> None:
    headers = [_slice([0, 0, place], plane=True, AcquisitionNumber=place // 2) for place in range(20)]
    del headers[missing]
    assert list(split(_keys(headers))) == [""]


def test_an_acquisition_of_which_a_slice_is_missing_is_not_split_off() -> None:
    headers = [_slice([0, 0, place], plane=True, AcquisitionNumber=place // 10) for place in range(20)]
    del headers[14]
    assert list(split(_keys(headers))) == [""]


def test_copies_of_files_do_not_keep_echoes_from_being_told_apart() -> None:
    headers = [
        _slice([0, 0, place], EchoNumbers=echo, SOPInstanceUID=f"1.{echo}.{place}")
        for echo in (1, 2, 1, 2)
        for place in range(3)
    ]
    assert split(_keys(headers)) == {"echo-1": [0, 1, 2, 6, 7, 8], "echo-2": [3, 4, 5, 9, 10, 11]}
    assert list(split(_keys([headers[number] for number in (0, 1, 2, 6, 7, 8)]))) == [""]


@pytest.mark.parametrize(
    "values",
    [{}, {"EchoNumbers": [1]}, {"AcquisitionNumber": [None, 1]}, {"EchoNumbers": [1, 1]}],
    ids=["plain", "one echo", "half of it lacks it", "the same"],
)
def test_what_is_one_volume_or_cannot_be_told_apart_stays_together(values: dict[str, list[Any]]) -> None:
    keys = _series(4, **values)
    assert split(keys) == {"": list(keys)}


def test_acquisitions_that_follow_each_other_along_the_patient_are_one_volume() -> None:
    headers = []
    for place in range(6):
        header = Dataset()
        header.ImagePositionPatient, header.AcquisitionNumber = [0, 0, place], 1 + place // 3
        headers.append(header)
    assert list(split({place: SliceKey.of(header) for place, header in enumerate(headers)})) == [""]


def test_one_slice_that_is_there_twice_is_no_volume_of_its_own() -> None:
    keys = _series(4, AcquisitionNumber=[1])
    header = Dataset()
    header.ImagePositionPatient, header.AcquisitionNumber = [1, 2, 3], 1
    assert list(split({**keys, 99: SliceKey.of(header)})) == [""]


def test_files_without_a_position_or_of_several_frames_are_not_split() -> None:
    header = Dataset()
    header.ImagePositionPatient, header.NumberOfFrames = [1, 2, 3], 20
    assert SliceKey.of(header) is None
    assert SliceKey.of(Dataset()) is None
    keys = {**_series(4, EchoNumbers=[1, 2]), 99: None}
    assert split(keys) == {"": list(keys)}


def test_a_damaged_value_counts_as_missing() -> None:
    """Values are parsed when they are first asked for: a number of three bytes must not stop a scan."""
    header = Dataset()
    header.ImagePositionPatient, header.AcquisitionNumber = [1, 2, 3], 7
    header[0x00189087] = RawDataElement(BaseTag(0x00189087), "FD", 3, b"abc", 0, False, True)
    key = SliceKey.of(header)
    assert key is not None
    assert key.values[list(ATTRIBUTES).index("DiffusionBValue")] == ""
    assert key.values[list(ATTRIBUTES).index("AcquisitionNumber")] == "7"
