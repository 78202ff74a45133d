"""As a user has it: `rayapp start` as a process of its own on an archive, OHIF before it, DICOM SEG behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rayapp.client import Client
from rayapp.geometry import index_to_mm
from rayapp.imaging.dicom_seg import read_segmentation
from rayapp.imaging.phantom import ORGANS, phantom
from rayapp.imaging.reader import read_grid
from tests.browser.conftest import Viewer
from tests.conftest import SHAPE, started
from tests.imaging.grids import MAX
from tests.imaging.series import write_series
from tests.imaging.test_dicom_seg import faults, needs_dciodvfy
from tests.orthanc import Orthanc, needs_orthanc

pytestmark = [pytest.mark.browser, needs_orthanc, needs_dciodvfy]

SERIES, STUDY = "1.2.3.1", "1.2.3"
SEED = 5_000_002  # whose grid is left-handed
LIVER = ORGANS["liver"]


def stored(archive: Orthanc, source: Path) -> npt.NDArray[Any]:
    """The newest label in the archive, which the validator finds no fault with, on the grid of the series."""
    client = archive.client()
    found = client.search_for_series(STUDY, search_filters={"Modality": "SEG"})
    segs = [client.retrieve_series(STUDY, one["0020000E"]["Value"][0])[0] for one in found]
    newest = max(segs, key=lambda seg: str(seg.SeriesDescription))
    file = source.parent / f"{newest.SOPInstanceUID}.dcm"
    newest.save_as(file, enforce_file_format=True)
    assert faults(file) == []
    label = read_segmentation(file, read_grid(source), max_bytes=MAX)
    values = np.zeros(256, np.uint8)
    for name, value in label.names.items():
        values[value] = ORGANS[name]
    return values[label.array]


def test_a_study_is_listed_opened_segmented_corrected_and_saved_and_is_the_same_again(
    archive: Orthanc, viewer: Viewer, tmp_path: Path
):
    page, source = viewer.page, tmp_path / "ct"
    volume, organs = phantom(SEED, shape=SHAPE)
    archive.store(write_series(source, volume.array[0], volume.affine, series=SERIES, study=STUDY, description="torso"))
    with started(tmp_path, "--studies", archive.url, "--models", "deepedit,segmentation") as server:
        page.goto(f"{server.url}/ohif/")
        page.get_by_text("Asymmetric").first.click()
        viewer.picture("server-1-list")
        page.get_by_text("Label with rayapp").first.click()
        assert viewer.said() == "ready; this image has no final label yet"
        file = server.workspace / "retrieved" / SERIES / "volume.nii"

        page.locator(".rayapp select[name=automatic]").select_option("segmentation")
        assert viewer.press("segment").startswith("segmentation, ")
        automatic, values = viewer.voxels(file)
        with Client(server.url) as client:
            given = {"result_extension": ".nii.gz"}
            answer = client.infer("segmentation", SERIES, params=given, to=tmp_path / "automatic.nii.gz")
            np.testing.assert_array_equal(automatic, answer.labels())
        grid = read_grid(source)
        assert grid.shape == SHAPE
        truth = organs.array if np.allclose(grid.affine, volume.affine, atol=1e-3) else organs.array[:, :, ::-1]
        shown = np.where(truth == LIVER, values, np.nan)
        assert np.nanstd(shown) < np.std(values)  # the truth lies where the viewer shows a liver
        viewer.picture("server-2-segmented")

        inside, outside = np.argwhere(truth == LIVER)[len(np.argwhere(truth == LIVER)) // 2], [2, 2, SHAPE[2] // 2]
        worlds = [index_to_mm(grid.affine, voxel) * [-1, -1, 1] for voxel in (inside, outside)]
        viewer.show(worlds[0])
        viewer.use("foreground")
        assert viewer.click(worlds[0]).startswith(f"liver at {', '.join(map(str, inside))}; deepedit, ")
        clicked, _ = viewer.voxels(file)
        assert clicked[tuple(inside)] == LIVER
        viewer.picture("server-3-clicked")
        viewer.show(worlds[1])
        viewer.use("background")
        assert viewer.click(worlds[1]).startswith("background at 2, 2, ")
        assert viewer.press("undo") == "undone"
        np.testing.assert_array_equal(viewer.voxels(file)[0], clicked)
        viewer.picture("server-4-undone")

        assert viewer.press("save") == "saved"
        page.locator(".rayapp .archived[data-state=there]").wait_for()
        np.testing.assert_array_equal(stored(archive, source), clicked)
        page.reload()
        assert viewer.said() == "ready; showing the final label"
        np.testing.assert_array_equal(viewer.voxels(file)[0], clicked)
        viewer.show(worlds[0])
        viewer.picture("server-5-reloaded")

        archive.stop()
        viewer.use("foreground")
        assert viewer.click(worlds[0]).startswith("liver at ")
        kept, _ = viewer.voxels(file)
        assert viewer.press("save") == "saved"
        page.locator(".rayapp .archived[data-state=waiting]").wait_for()
        viewer.picture("server-6-archive-away")
        archive.start()
        page.locator(".rayapp .archived[data-state=there]").wait_for()
        np.testing.assert_array_equal(stored(archive, source), kept)
        viewer.wrong.clear()  # what OHIF asked of the archive meanwhile
    assert server.process.returncode == 0
