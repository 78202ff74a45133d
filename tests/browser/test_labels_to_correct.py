"""Labels that somebody or something else made open to be corrected, with all that is in them."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp.config import ohif_folder
from tests.browser.conftest import Viewer
from tests.gateway.conftest import AFFINE, SHAPE, Serve

pytestmark = pytest.mark.browser


def test_a_label_that_is_not_final_opens_with_empty_and_unnamed_structures_and_says_what_was_looked_for(
    serve: Serve, viewer: Viewer, tmp_path: Path
):
    served = serve(ohif=ohif_folder())
    theirs = np.zeros(SHAPE, np.uint8)
    theirs[2:5, 3:6, 1:4], theirs[8:10, 7:9, 5] = 1, 4
    nibabel.Nifti1Image(theirs, AFFINE).to_filename(tmp_path / "theirs.nii.gz")
    named = [{"name": "bright", "idx": 1}, {"name": "lesion", "idx": 2}]
    served.save("ct_a", tmp_path / "theirs.nii.gz", "original", label_info=named)

    said = viewer.open(served.url, "ct_a")
    assert said == "ready; showing the label original to correct: save it to make it final"
    file = served.settings.studies / "ct_a.nii.gz"
    shown = np.where(theirs == 4, 3, theirs)
    np.testing.assert_array_equal(viewer.voxels(file)[0], shown)
    rows = viewer.page.locator(".rayapp .structure")
    viewer.picture("structures")
    voxel = abs(np.linalg.det(AFFINE[:3, :3])) / 1000
    volumes = [f"{27 * voxel:.2f} ml", "", f"{4 * voxel:.2f} ml"]
    assert [row.split("\n")[:2] for row in rows.locator(".label, .volume").all_inner_texts()] == [
        [text] for pair in zip(["bright", "lesion", "segment 4"], volumes, strict=True) for text in pair
    ]
    marks = rows.locator("[name=looked]")
    assert [mark.get_attribute("aria-pressed") for mark in marks.all()] == ["true"] * 3
    assert viewer.after(marks.nth(1).click) == "not looked for lesion"
    assert viewer.press("undo") == "undone"
    assert marks.nth(1).get_attribute("aria-pressed") == "true"
    assert viewer.press("redo") == "redone"
    assert viewer.press("save") == "saved"
    label = served.store.label("ct_a", "final")
    np.testing.assert_array_equal(np.asarray(nibabel.load(label.path).dataobj), shown)
    assert label.info["label_info"] == [{"name": "bright", "idx": 1}, {"name": "segment 4", "idx": 3}]
    assert label.info["looked_for"] == ["bright", "segment 4"]

    viewer.page.reload()
    assert viewer.said() == "ready; showing the final label"
    viewer.page.locator(".rayapp select[name=revision]").select_option("tag original")
    assert viewer.press("restore").startswith("restored")
    assert [mark.get_attribute("aria-pressed") for mark in marks.all()] == ["true"] * 3
