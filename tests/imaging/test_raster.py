"""Voxels in file order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayapp.imaging.raster import raster


@pytest.mark.parametrize("shape", [(5, 7, 4), (31, 3, 2), (32, 3, 2), (65, 2, 3), (1, 1, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [None, np.uint16, ">u2"])
def test_the_first_index_is_the_fastest(shape: tuple[int, int, int], order: Any, dtype: Any) -> None:
    array = np.array(np.arange(np.prod(shape)).reshape(shape) % 251, np.uint8, order=order)
    found = raster(array, dtype)
    assert found.flags.c_contiguous
    assert found.dtype == np.dtype(dtype or np.uint8)
    assert found.ravel().tolist() == array.ravel(order="F").tolist()


def test_voxels_that_lie_so_already_are_not_copied() -> None:
    array = np.zeros((5, 7, 4), np.uint8, order="F")
    assert np.shares_memory(raster(array), array)


def test_a_strided_view_is_put_in_order() -> None:
    array = np.arange(6 * 70 * 4).reshape(6, 70, 4).transpose(1, 0, 2)[::-1, :, ::2]
    assert raster(array).ravel().tolist() == array.ravel(order="F").tolist()
