"""Minute one: a real scan that nobody trained for is opened in the browser, one click outlines an organ."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rayapp.config import ohif_folder
from rayapp.geometry import index_to_mm, spacing
from rayapp.training.synthetic.prompts import middle
from tests.browser.conftest import Viewer
from tests.gateway.conftest import Serve, Served
from tests.real_data import real

pytestmark = pytest.mark.browser
LIVER = 5
"""Its value in TotalSegmentator's masks."""


@pytest.fixture(scope="module")
def body(serve: Serve) -> Served:
    """A server for a body CT, with the network that ships and the name of a structure."""
    source = real("totalseg", "example_ct_sm.nii.gz")
    served = serve(app="radiology", models=("deepgrow_3d",), labels=("liver",), ohif=ohif_folder(), max_body=64 << 20)
    shutil.copy(source, served.settings.studies / "body.nii.gz")
    served.store.refresh()
    return served


def test_one_click_on_a_liver_outlines_it(body: Served, viewer: Viewer):
    file: Path = body.settings.studies / "body.nii.gz"
    affine = nibabel.load(file).affine
    truth = np.asarray(nibabel.load(real("totalseg", "example_seg.nii.gz")).dataobj) == LIVER
    at = middle(truth, spacing(affine))
    world = index_to_mm(affine, at) * [-1, -1, 1]
    viewer.open(body.url, "body")
    viewer.show(world)
    viewer.use("foreground")
    assert viewer.click(world).startswith("liver at ")
    found, values = viewer.voxels(file)
    np.testing.assert_array_equal(values, np.asarray(nibabel.load(file).dataobj))
    assert 2 * (found.astype(bool) & truth).sum() / ((found > 0).sum() + truth.sum()) > 0.5
    viewer.picture("first-click")


def test_a_structure_that_the_reader_names_is_outlined_saved_and_there_again(body: Served, viewer: Viewer):
    file: Path = body.settings.studies / "body.nii.gz"
    affine = nibabel.load(file).affine
    truth = np.asarray(nibabel.load(real("totalseg", "example_seg.nii.gz")).dataobj) == LIVER
    world = index_to_mm(affine, middle(truth, spacing(affine))) * [-1, -1, 1]
    viewer.open(body.url, "body")
    viewer.show(world)
    named = viewer.page.locator(".rayapp input[name=structure]")
    named.fill("right lobe")
    named.press("Enter")
    assert names(viewer) == ["liver", "right lobe"]
    viewer.use("foreground")
    assert viewer.click(world).startswith("right lobe at ")
    found, _ = viewer.voxels(file)
    assert set(np.unique(found)) == {0, 2}
    assert viewer.press("save") == "saved"

    viewer.open(body.url, "body")
    assert names(viewer) == ["liver", "right lobe"], "a saved structure is known again"
    np.testing.assert_array_equal(viewer.voxels(file)[0], found)
    assert viewer.press("save") == "saved"
    viewer.open(body.url, "body")
    np.testing.assert_array_equal(viewer.voxels(file)[0], found)


def test_a_point_on_an_earlier_one_counts_and_moves_none(body: Served, viewer: Viewer):
    affine = nibabel.load(body.settings.studies / "body.nii.gz").affine
    world = index_to_mm(affine, (50, 40, 10)) * [-1, -1, 1]
    viewer.open(body.url, "body")
    viewer.show(world)
    for mode in ("foreground", "background"):
        viewer.use(mode)
        assert " at " in viewer.click(world)


def names(viewer: Viewer) -> list[str]:
    return viewer.page.locator(".rayapp .labels button.label").all_text_contents()
