"""Nothing that a reader paints or points at is lost, and one list undoes it: tabs, the study list, a reload, a crash,
another reader's save, OHIF's own buttons."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from rayapp.config import ohif_folder
from rayapp.geometry import index_to_mm
from tests.browser.conftest import Viewer
from tests.gateway.conftest import Serve, Served, write_image
from tests.waiting import until

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


def test_prompts_paint_and_strokes_are_undone_and_redone_one_by_one_also_after_a_reload(
    served: Served, image: str, viewer: Viewer
):
    reader = Reader(served, viewer, image)
    states: list[npt.NDArray[np.uint8]] = [reader.labels()]
    viewer.use("foreground")
    assert "bright at " in viewer.click(reader.at(6, 6))
    states.append(reader.labels())
    states.append(reader.brush(20))
    viewer.use("stroke-on")
    for row in (30, 34):
        viewer.draw([reader.at(15, row), reader.at(30, row)])
        reader.page.wait_for_timeout(500)
        states.append(reader.labels())
    assert [sorted(np.unique(state)) for state in states] == [[0], [0, 1], [0, 1], [0, 1, 254], [0, 1, 254]]
    assert all((one != other).any() for one, other in pairwise(states))
    reader.kept()

    def back_and_forth(undo: Callable[[], str], redo: Callable[[], str]) -> None:
        for state in states[-2::-1]:
            assert undo() == "undone"
            np.testing.assert_array_equal(reader.labels(), state)
        assert (undo(), viewer.dots()) == ("nothing to undo", 0)
        for state in states[1:]:
            assert redo() == "redone"
            np.testing.assert_array_equal(reader.labels(), state)
        assert (redo(), viewer.dots()) == ("nothing to redo", 1)

    back_and_forth(lambda: viewer.press("undo"), lambda: viewer.press("redo"))
    reader.reload()
    assert reader.said == RESTORED
    np.testing.assert_array_equal(reader.labels(), states[-1])
    ohif = {name: reader.page.locator(f"[data-cy={name}-btn]").click for name in ("undo", "redo")}
    back_and_forth(lambda: viewer.after(ohif["undo"]), lambda: viewer.after(ohif["redo"]))
    assert viewer.after(lambda: reader.page.keyboard.press("Control+z")) == "undone"
    np.testing.assert_array_equal(reader.labels(), states[-2])


def test_a_crash_loses_nothing_and_another_tab_goes_on_by_itself(served: Served, image: str, viewer: Viewer):
    reader = Reader(served, viewer, image)
    painted = reader.brush(20)
    page = viewer.page.context.new_page()  # which has nothing of the first one, as after a crash
    other = Viewer(page, viewer.pictures)
    second = Reader(served, other, image)
    assert second.said == RESTORED
    np.testing.assert_array_equal(second.labels(), painted)
    assert other.press("undo") == "undone"
    assert not second.labels().any()
    second.kept()
    assert other.wrong == []
    page.close()
    np.testing.assert_array_equal(reader.labels(), painted)  # the first tab has a list of its own
    more = reader.brush(30)
    reader.reload()
    assert reader.said == RESTORED
    np.testing.assert_array_equal(reader.labels(), more)


def test_a_server_that_is_away_is_told_and_leaving_the_page_is_asked_about(served: Served, image: str, viewer: Viewer):
    reader = Reader(served, viewer, image)
    reader.page.route("**/viewer/draft", lambda route: route.abort())
    viewer.use("stroke-on")
    viewer.draw([reader.at(15, 30), reader.at(30, 30)])
    reader.page.locator(".rayapp .draft[data-state=lost]", has_text="not on the server").wait_for()
    asked: list[str] = []
    reader.page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    reader.page.evaluate("setTimeout(() => location.reload())")
    reader.page.wait_for_timeout(1500)
    assert asked == ["beforeunload"]
    reader.page.unroute("**/viewer/draft")
    reader.kept()
    painted = reader.labels()
    reader.reload()
    np.testing.assert_array_equal(reader.labels(), painted)
    assert asked == ["beforeunload"], "once the server has it, nobody is asked"


def test_another_readers_save_is_not_overwritten_unseen(served: Served, image: str, viewer: Viewer, tmp_path: Path):
    reader = Reader(served, viewer, image)
    reader.brush(20)
    assert viewer.press("save") == "saved"
    mine = reader.brush(30)
    theirs = np.zeros(SHAPE, np.uint8)
    theirs[1:4, 1:4, 1:4] = 1
    nibabel.Nifti1Image(theirs, AFFINE).to_filename(tmp_path / "theirs.nii.gz")
    served.save(image, tmp_path / "theirs.nii.gz", "final", label_info=[{"name": "bright", "idx": 1}])

    assert "was saved by admin at " in viewer.press("save")
    viewer.wrong.clear()  # that answer
    np.testing.assert_array_equal(np.asarray(nibabel.load(served.store.label(image, "final").path).dataobj), theirs)
    viewer.picture("conflict")
    assert viewer.press("look").startswith("shown beside your label")
    np.testing.assert_array_equal(viewer.voxels(reader.file, what="revision")[0], theirs)
    assert viewer.press("look") == "hidden"
    assert viewer.press("start-theirs").startswith("restored")
    np.testing.assert_array_equal(reader.labels(), theirs)
    assert viewer.press("undo") == "undone"
    np.testing.assert_array_equal(reader.labels(), mine)
    assert viewer.press("save") == "saved"
    np.testing.assert_array_equal(np.asarray(nibabel.load(served.store.label(image, "final").path).dataobj), mine)
    assert [one.number for one in served.store.revisions(image, "final")] == [1, 2, 3]

    reader.page.locator(".rayapp select[name=revision]").select_option("2")
    assert viewer.press("restore").startswith("restored")
    np.testing.assert_array_equal(reader.labels(), theirs)


def test_ohifs_own_export_saves_our_way_and_strokes_never_leave_the_page(served: Served, image: str, viewer: Viewer):
    reader = Reader(served, viewer, image)
    painted = reader.brush(20)
    viewer.use("stroke-on")
    viewer.draw([reader.at(15, 30), reader.at(30, 30)])
    reader.page.locator(THEIRS).click()
    reader.page.locator("[data-cy=data-row-title]").first.wait_for()
    listed = reader.page.locator("[data-cy=data-row-title]").all_inner_texts()
    assert listed == ["bright", "foreground stroke"], "strokes have a name there"

    def export(kind: str) -> None:
        reader.page.locator("[data-cy=segmentation-collapsed-more-btn-Labelmap]").click()
        reader.page.get_by_role("menuitem", name="Export").hover()
        reader.page.get_by_role("menuitem", name=kind).click()

    export("DICOM SEG")  # our own panel is not shown now, so it is the server that tells
    until(lambda: "final" in served.store.labels(image))
    saved = nibabel.load(served.store.label(image, "final").path)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), painted)


def test_a_labelmap_that_was_deleted_in_ohif_is_not_saved_as_an_empty_label(served: Served, image: str, viewer: Viewer):
    reader = Reader(served, viewer, image)
    painted = reader.brush(20)
    reader.page.evaluate(
        """() => {
            const { state } = cornerstoneTools.segmentation;
            state.removeSegmentation(state.getSegmentations()[0].segmentationId);
        }"""
    )
    assert viewer.press("save").startswith("the label was removed from the viewer")
    assert served.store.labels(image) == {}
    assert viewer.press("again") == "ready; your work is as you left it"
    np.testing.assert_array_equal(reader.labels(), painted)


def test_strokes_are_of_the_structure_that_they_were_drawn_for_and_the_brush_never_paints_them(
    served: Served, image: str, viewer: Viewer
):
    reader = Reader(served, viewer, image)
    named = reader.page.locator(".rayapp input[name=structure]")
    named.fill("other")
    assert viewer.after(lambda: named.press("Enter")) == "marks are for other"
    viewer.use("stroke-on")
    viewer.draw([reader.at(15, 30), reader.at(30, 30)])
    reader.page.wait_for_timeout(500)
    drawn = reader.labels()
    assert 254 in drawn
    assert viewer.after(reader.page.get_by_role("button", name="bright").first.click) == "marks are for bright"
    assert not reader.labels().any()
    assert viewer.press("undo") == "undone"
    np.testing.assert_array_equal(reader.labels(), drawn)
    assert reader.page.locator(".rayapp .labels .on").inner_text() == "other"
    painted = reader.brush(10)
    assert set(np.unique(painted)) == {0, 2, 254}
    np.testing.assert_array_equal(painted == 254, drawn == 254)
