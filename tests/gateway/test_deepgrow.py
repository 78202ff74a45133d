"""DeepGrow on the wire, in the forms of 3D Slicer and OHIF, once a version of it is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.imaging.reader import read_segmentation
from rayapp.models.store import ModelStore
from tests.gateway.conftest import AFFINE, Serve, Served, write_image
from tests.inference.near_and_bright import BRIGHT, DARK, answer, speckles, version

SHAPE = (30, 26, 9)
CLICKS = [[12, 10, 4], [18, 15, 4]]
AWAY = [[12, 19, 4]]
BOTH = pytest.mark.parametrize("dimensions", [2, 3])


def expected(dimensions: int) -> np.ndarray:
    if dimensions == 3:
        return answer(bright(), CLICKS, AWAY)
    found = np.zeros(SHAPE, bool)
    found[:, :, 4] = answer(bright()[:, :, 4], [at[:2] for at in CLICKS], [at[:2] for at in AWAY])
    return found


def bright() -> np.ndarray:
    speckled = speckles(SHAPE)
    for point in (*CLICKS, *AWAY):
        speckled[tuple(point)] = True
    return speckled


@pytest.fixture(scope="module")
def radiology(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Served:
    served = serve(app="radiology", models=("deepgrow_2d", "deepgrow_3d"), labels=("liver", "spleen"))
    write_image(served.settings.studies / "mr.nii.gz", np.where(bright(), BRIGHT, DARK).astype(np.int16))
    served.store.refresh()
    for dimensions in (2, 3):
        made = version(tmp_path_factory.mktemp("weights"), dimensions)
        ModelStore.of(served.settings).publish(made.name, made.weights, made.card)
    return served


def click(served: Served, dimensions: int, query: str = "", **params: Any) -> Any:
    return served.post(f"/infer/deepgrow_{dimensions}d?image=mr{query}", data={"params": json.dumps(params)})


@BOTH
def test_slicers_request_brings_the_mask_of_the_active_segment(radiology: Served, tmp_path: Path, dimensions: int):
    config = {"device": "cpu", "largest_cc": False}
    of_slice = {"slice": 4} if dimensions == 2 else {}
    answered = click(
        radiology, dimensions, label="spleen", foreground=CLICKS, background=AWAY, **of_slice, roi=[],
        reset_state=True, result_extension=".nrrd", result_dtype="uint8", client_id="slicer", **config,
    )  # fmt: skip
    assert answered.status_code == 200, answered.text
    boundary = answered.headers["content-type"].partition("boundary=")[2].encode()
    _, params, mask, _ = answered.content.split(b"--" + boundary)
    assert json.loads(params.partition(b"\r\n\r\n")[2])["label_names"] == {"spleen": 1}
    file = tmp_path / "mask.nrrd"
    file.write_bytes(mask.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"))
    found = read_segmentation(file, max_bytes=1 << 20)
    np.testing.assert_array_equal(found.array, expected(dimensions))
    np.testing.assert_allclose(found.affine, AFFINE, atol=1e-4)
    assert radiology.store.events("mr")[-1].payload["clicks"] == {"foreground": CLICKS, "background": AWAY}


@BOTH
def test_ohifs_request_brings_a_bare_mask(radiology: Served, tmp_path: Path, dimensions: int):
    answered = click(
        radiology, dimensions, "&output=image", foreground=CLICKS, background=AWAY, result_extension=".nrrd",
        result_dtype="uint8", result_compress=False, restore_label_idx=False,
    )  # fmt: skip
    assert answered.status_code == 200, answered.text
    file = tmp_path / "mask.nrrd"
    file.write_bytes(answered.content)
    np.testing.assert_array_equal(read_segmentation(file, max_bytes=1 << 20).array, expected(dimensions))


@BOTH
def test_a_request_without_clicks_is_told_to_click(radiology: Served, dimensions: int):
    answered = click(radiology, dimensions, label="spleen", foreground=[], background=[])
    assert answered.status_code == 400
    assert "click on a structure" in answered.json()["detail"]
