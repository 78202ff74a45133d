"""What a reader paints by hand outlives the panel's tabs, the study list and a reload."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from rayapp.config import ohif_folder
from rayapp.geometry import index_to_mm
from tests.browser.conftest import Viewer
from tests.gateway.conftest import Serve, Served, write_image

pytestmark = pytest.mark.browser

SHAPE = (40, 40, 8)
AFFINE = np.diag([5.0, 5.0, 6.0, 1.0])
OURS = "[data-cy=rayapp-btn]"
THEIRS = "[data-cy=panelSegmentationWithToolsLabelMap-btn]"


@pytest.fixture(scope="module")
def served(serve: Serve) -> Served:
    return serve(ohif=ohif_folder())


@pytest.fixture
def image(served: Served) -> str:
    """A dark image with one bright block, that no other test works on."""
    voxels = np.zeros(SHAPE, np.int16)
    voxels[4:9, 4:9, 3:6] = 180
    name = f"lasting_{len(list(served.settings.studies.glob('lasting_*')))}"
    write_image(served.settings.studies / f"{name}.nii.gz", voxels, AFFINE)
    served.store.refresh()
    return name


class Reader:
    """What a reader does with the image `name`, and what they see of it."""

    def __init__(self, served: Served, viewer: Viewer, name: str) -> None:
        self.viewer, self.page = viewer, viewer.page
        self.file: Path = served.settings.studies / f"{name}.nii.gz"
        self.said = viewer.open(served.url, name)
        viewer.show(self.at(20, 20))

    def at(self, i: int, j: int) -> npt.NDArray[np.float64]:
        return index_to_mm(AFFINE, [i, j, 4]) * [-1, -1, 1]

    def labels(self) -> npt.NDArray[np.uint8]:
        return self.viewer.voxels(self.file)[0]

    def brush(self, row: int) -> npt.NDArray[np.uint8]:
        """Paint along a row with OHIF's brush, from OHIF's own panel; the labels then, as the server has them too."""
        self.page.locator(THEIRS).click()
        self.page.locator("[data-cy=Brush-btn]").click()
        self.viewer.draw([self.at(15, row), self.at(30, row)])
        self.page.locator(OURS).click()
        self.kept()
        return self.labels()

    def kept(self) -> None:
        """Wait until the panel says that the server has a draft."""
        self.page.locator(".rayapp .draft[data-state=kept]").wait_for()

    def reload(self) -> None:
        self.page.reload()
        self.said = self.viewer.said()
        self.viewer.show(self.at(20, 20))


RESTORED = "ready; your work is restored, and not saved yet"


def test_painted_voxels_outlive_tabs_the_study_list_and_a_reload(served: Served, image: str, viewer: Viewer):
    reader = Reader(served, viewer, image)
    painted = reader.brush(20)
    assert set(np.unique(painted)) == {0, 1}
    assert (painted[15:31, 20, 4] == 1).all()
    reader.page.evaluate("window.same = true")
    reader.page.locator("[data-cy=return-to-work-list]").click()
    reader.page.locator(".rayapp").wait_for(state="detached")
    reader.page.go_back()
    assert viewer.said() == RESTORED
    assert reader.page.evaluate("window.same"), "OHIF's page was not left"
    np.testing.assert_array_equal(reader.labels(), painted)
    reader.reload()
    assert reader.said == RESTORED
    np.testing.assert_array_equal(reader.labels(), painted)
    assert viewer.press("save") == "saved"
    saved = nibabel.load(served.store.label(image, "final").path)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), painted)
    reader.reload()
    assert reader.said == "ready; showing the final label"
    assert viewer.press("undo") == "nothing to undo"
