"""Every row of the documentation's table of DICOM series is what happens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayapp.errors import Unreadable
from rayapp.imaging.reader import read_volume
from tests.imaging.dicom_kinds import KINDS, PAGE, Kind, written
from tests.imaging.grids import AFFINES, MAX, voxels
from tests.imaging.series import write_series


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.series)
def test_a_series_is_served_or_refused_as_the_page_says(tmp_path: Path, kind: Kind) -> None:
    kind.make(write_series(tmp_path / "series", voxels(), AFFINES["straight"]))
    assert kind.outcome.startswith("refused") == (kind.refused is not None)
    if kind.refused is not None:
        with pytest.raises(Unreadable, match=kind.refused):
            read_volume(tmp_path / "series", max_bytes=MAX)
        return
    found = read_volume(tmp_path / "series", max_bytes=MAX).array[0]
    factors = [float(f"1.{k}") for k in range(4)] if "slope" in kind.series else [1.0] * 4
    np.testing.assert_allclose(found, voxels() * np.array(factors), rtol=1e-6)


def test_the_page_has_the_table_of_the_tests() -> None:
    assert PAGE.read_text() == written(PAGE.read_text()), "run python -m tests.imaging.dicom_kinds"
