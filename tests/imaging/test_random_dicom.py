"""Random DICOM series: each voxel has the value that pydicom alone gives the pixel at its place, or all are refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.pixels import apply_modality_lut
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from rayapp.errors import Unreadable
from rayapp.geometry import mm_to_index
from rayapp.imaging.reader import read_volume
from tests.imaging.grids import MAX
from tests.imaging.series import write_series

SHAPE = (3, 4, 5)
many = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::RuntimeWarning")


@st.composite
def faults(draw: st.DrawFn) -> dict[str, Any]:
    """What scanners, anonymisers and exports do to a series; each with a probability of its own."""

    def sometimes(strategy: st.SearchStrategy[Any]) -> Any:
        return draw(strategy) if draw(st.integers(0, 3)) == 0 else None

    seeds = st.integers(0, 2**32 - 1)
    return {
        "seed": draw(seeds),
        "digits": draw(st.sampled_from([1, 2, 4, 9])),
        "axial": draw(st.booleans()),
        "edges": draw(st.lists(st.floats(0.3, 4).map(lambda n: round(n, 3)), min_size=3, max_size=3)),
        "shift": sometimes(st.tuples(st.integers(0, 4), st.integers(0, 2), st.floats(-0.6, 0.6))),
        "missing": sometimes(st.integers(0, 4)),
        "twice": sometimes(st.integers(0, 4)),
        "copied": draw(st.booleans()),
        "cosines": sometimes(st.floats(0, 0.02)),
        "slopes": sometimes(seeds),
        "between": sometimes(st.sampled_from([-2.0, 0.0, 7.0])),
        "bits": draw(st.sampled_from([16, 16, 12, 10])),
        "dirty": draw(st.booleans()),
        "signed": draw(st.booleans()),
        "inverted": draw(st.booleans()),
        "syntax": draw(st.sampled_from([None, None, ImplicitVRLittleEndian, RLELossless])),
    }


def _damage(files: list[Path], fault: dict[str, Any]) -> None:
    random = np.random.default_rng(fault["seed"])
    factor = np.random.default_rng(fault["slopes"])
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        place = np.array(dataset.ImagePositionPatient, float)
        if fault["shift"] and fault["shift"][0] == number:
            place[fault["shift"][1]] += fault["shift"][2]
        dataset.ImagePositionPatient = [round(float(n), fault["digits"]) for n in place]
        if fault["cosines"]:
            cosines = np.array(dataset.ImageOrientationPatient, float) + random.normal(0, fault["cosines"], 6)
            dataset.ImageOrientationPatient = [round(float(n), 8) for n in cosines]
        if fault["slopes"] is not None:
            dataset.RescaleSlope = round(float(factor.uniform(0.1, 3)), 4)
            dataset.RescaleIntercept = round(float(factor.uniform(-1000, 1000)), 2)
        if fault["between"] is not None:
            dataset.SpacingBetweenSlices = fault["between"]
        dataset.PhotometricInterpretation = "MONOCHROME1" if fault["inverted"] else "MONOCHROME2"
        bits, signed = fault["bits"], fault["signed"]
        low = -(1 << (bits - 1)) if signed else 0
        stored = random.integers(low, low + (1 << bits), (dataset.Rows, dataset.Columns))
        words = (stored & ((1 << bits) - 1)).astype(np.uint16)
        if signed and not fault["dirty"]:
            words = stored.astype(np.int16).view(np.uint16)
        elif fault["dirty"] and fault["syntax"] is None:
            words |= (random.integers(0, 1 << 16, words.shape) & ~((1 << bits) - 1)).astype(np.uint16)
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = int(signed), bits, bits - 1
        dataset.PixelData = words.astype("<u2").tobytes()
        dataset.StudyID = str(number)
        if fault["syntax"] == RLELossless:
            dataset.compress(RLELossless, generate_instance_uid=False)
        elif fault["syntax"] is not None:
            dataset.file_meta.TransferSyntaxUID = fault["syntax"]
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
        (file.parent / "wanted").mkdir(exist_ok=True)
        whole = np.where(stored >= (1 << bits), 0, stored)
        np.save(file.parent / "wanted" / f"{number}.npy", whole)


@given(faults())
@many
def test_a_voxel_has_the_value_of_the_pixel_at_its_place_or_the_series_is_refused(fault: dict[str, Any]) -> None:
    random = np.random.default_rng(fault["seed"])
    turned = np.eye(3) if fault["axial"] else np.linalg.qr(random.normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turned * fault["edges"]
    affine[:3, 3] = random.uniform(-100, 100, 3)
    with tempfile.TemporaryDirectory() as folder:
        series = Path(folder) / "series"
        files = write_series(series, np.zeros(SHAPE, np.int16), affine)
        _damage(files, fault)
        if fault["twice"] is not None:
            again = pydicom.dcmread(files[fault["twice"]])
            if not fault["copied"]:
                again.SOPInstanceUID = "1.2.3"
            again.save_as(series / "again.dcm")
        if fault["missing"] is not None:
            files[fault["missing"]].unlink()
        try:
            volume = read_volume(series, max_bytes=MAX)
        except Unreadable:
            return
        assert fault["twice"] is None or fault["copied"] or fault["twice"] == fault["missing"]
        assert fault["missing"] in (None, 0, 4, fault["twice"])  # one at an end cannot be missed
        for file in series.glob("*.dcm"):
            _assert_pixels_lie_in(volume, file, fault)


def _assert_pixels_lie_in(volume: Any, file: Path, fault: dict[str, Any]) -> None:
    dataset = pydicom.dcmread(file)
    row, column = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    rows, columns = np.mgrid[: dataset.Rows, : dataset.Columns].reshape(2, -1)
    between_rows, between_columns = map(float, dataset.PixelSpacing)
    lps = np.array(dataset.ImagePositionPatient, float) + np.outer(columns * between_columns, row)
    lps += np.outer(rows * between_rows, column)
    exact = mm_to_index(volume.affine, lps * (-1, -1, 1))
    voxels = np.rint(exact).astype(int)
    assert np.abs(exact - voxels).max() < 0.45
    wanted = apply_modality_lut(np.load(file.parent / "wanted" / f"{dataset.StudyID}.npy"), dataset)
    found = volume.array[0][tuple(voxels.T)]
    np.testing.assert_allclose(found, wanted[rows, columns], rtol=1e-5, atol=1e-2 if fault["slopes"] is not None else 0)
