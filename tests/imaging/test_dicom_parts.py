"""Series of several volumes: split by the attribute that tells them apart, and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from rayapp.imaging.dicom_parts import ATTRIBUTES, SliceKey, split


def _series(slices: int, **values: list[Any]) -> dict[int, SliceKey | None]:
    """A stack for each of the values; attributes of one value are the same in all."""
    count = max(map(len, values.values()), default=1)
    keys: dict[int, SliceKey | None] = {}
    for part in range(count):
        for place in range(slices):
            header = Dataset()
            header.ImagePositionPatient = [1, 2, place * 3]
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
    ],
)
def test_a_series_is_split_by_what_tells_its_volumes_apart(values: dict[str, list[Any]], names: list[str]) -> None:
    parts = split(_series(4, **values))
    assert list(parts) == names
    assert [parts[name] for name in names] == [list(range(4 * n, 4 * n + 4)) for n in range(len(names))]


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
