"""OHIF's voxels are the image's, in all three axes: a model whose mask is known, on grids that no slip survives."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp.active_learning.score_files import save_uncertainty
from rayapp.config import ohif_folder
from rayapp.geometry import index_to_mm
from rayapp.imaging.dicom_instances import uid_of
from rayapp.imaging.volume import Segmentation
from rayapp.protocol import Role
from tests.browser.conftest import Viewer
from tests.gateway.conftest import AFFINE, SHAPE, Serve, Served, voxels, write_image
from tests.imaging.series import compress, write_series

pytestmark = pytest.mark.browser

AS_SCANNED = np.array([[-1.4, 0.0, 0.0, 9.0], [0.0, -1.2, 0.7, -4.0], [0.0, 0.35, 2.4, 30.0], [0, 0, 0, 1]])
GRIDS = {
    "right": AFFINE,
    "left": AFFINE * [-1, 1, 1, 1],
    "as_scanned": AS_SCANNED,
}


@pytest.fixture(scope="module")
def gateway(serve: Serve) -> Served:
    served = serve(ohif=ohif_folder())
    for name, affine in GRIDS.items():
        write_image(served.settings.studies / f"{name}.nii.gz", affine=affine)
    served.store.refresh()
    return served


@pytest.mark.parametrize("image", GRIDS)
def test_what_is_shown_clicked_and_saved_lies_on_the_very_voxels(gateway: Served, viewer: Viewer, image: str):
    file = gateway.settings.studies / f"{image}.nii.gz"
    bright = voxels() > 100
    assert viewer.open(gateway.url, image) == "ready; this image has no final label yet"
    labels, values = viewer.voxels(file)
    np.testing.assert_array_equal(values, voxels())
    assert not labels.any()
    assert "bright" in viewer.press("segment")
    np.testing.assert_array_equal(viewer.voxels(file)[0], bright)

    i, j, k = 9, 2, 5
    world = index_to_mm(GRIDS[image], [i, j, k]) * [-1, -1, 1]
    viewer.show(world)
    viewer.use("foreground")
    assert f"at {i}, {j}, {k}" in viewer.click(world)
    (work,) = gateway.get(f"/interactions?image={image}").json()
    assert [prompt["clicks"] for prompt in work["prompts"]] == [{"bright": [[i, j, k]]}]

    assert viewer.press("save") == "saved"
    saved = gateway.store.label(image, "final")
    np.testing.assert_array_equal(np.asarray(nibabel.load(saved.path).dataobj), bright)
    assert saved.info["label_info"] == [{"name": "bright", "idx": 1}]
    viewer.page.reload()
    assert viewer.said() == "ready; showing the final label"
    np.testing.assert_array_equal(viewer.voxels(file)[0], bright)


def test_dicom_files_in_a_folder_are_shown_and_saved_as_they_lie(serve: Serve, viewer: Viewer, tmp_path: Path):
    served = serve(ohif=ohif_folder())
    files = write_series(served.settings.studies / "from" / "a disc", voxels(), AS_SCANNED, series="1.2.3")
    compress(files[2:], "1.2.840.10008.1.2.5")
    served.store.refresh()
    twin = write_image(tmp_path / "twin.nii.gz", affine=AS_SCANNED)
    assert viewer.open(served.url, "1.2.3") == "ready; this image has no final label yet"
    assert "bright" in viewer.press("segment")
    labels, values = viewer.voxels(twin)
    np.testing.assert_array_equal(values, voxels())
    np.testing.assert_array_equal(labels, voxels() > 100)
    assert viewer.press("scribble") == "this server has no model that takes strokes"
    assert viewer.press("save") == "saved"
    viewer.page.reload()
    assert viewer.said() == "ready; showing the final label"
    np.testing.assert_array_equal(viewer.voxels(twin)[0], voxels() > 100)


def test_uncertainty_lies_over_the_very_voxels_and_goes_away(gateway: Served, viewer: Viewer):
    levels = np.random.default_rng(5).integers(0, 256, SHAPE, dtype=np.uint8)
    save_uncertainty(gateway.settings.studies, "tta", "left", Segmentation(array=levels, affine=GRIDS["left"]))
    gateway.store.update_image_info("left", {"tta_slices": {"i": [1], "j": [2], "k": [4, 0]}})
    viewer.open(gateway.url, "left")
    viewer.page.locator(".rayapp select[name=scored]").select_option("tta")
    assert viewer.press("uncertainty") == "most uncertain slices: k = 4, 0"
    shown, _ = viewer.voxels(gateway.settings.studies / "left.nii.gz", what="uncertainty")
    np.testing.assert_array_equal(shown, levels // 64)
    viewer.picture("uncertainty")
    assert viewer.press("uncertainty") == "uncertainty map hidden"
    assert "uncertainty" not in viewer.page.evaluate(
        "cornerstoneTools.segmentation.state.getSegmentations().map(one => one.segmentationId).join()"
    )


def test_the_next_image_opens_with_its_reason(gateway: Served, viewer: Viewer):
    viewer.open(gateway.url, "left")
    with viewer.page.expect_navigation():
        viewer.use("next")
    viewer.page.locator(".rayapp .reason", has_text="first: ").wait_for()
    image = viewer.page.locator(".rayapp .image").inner_text()
    assert image != "left"
    assert uid_of("study", image) in viewer.page.url
    assert "first" in gateway.store.image(image).info["strategy"]


def test_where_keys_are_asked_for_the_panel_asks_for_one_and_uses_it_everywhere(serve: Serve, viewer: Viewer):
    keyed = serve(auth="token", ohif=ohif_folder())
    key = keyed.users.add("anna", Role.ANNOTATOR)
    viewer.page.on("dialog", lambda dialog: dialog.accept(key))
    assert viewer.open(keyed.url, "ct_a") == "ready; this image has no final label yet"
    assert "bright" in viewer.press("segment")
    np.testing.assert_array_equal(viewer.voxels(keyed.settings.studies / "ct_a.nii.gz")[1], voxels())
    assert viewer.press("save") == "saved"
    assert keyed.store.revisions("ct_a", "final")[-1].user == "anna"
