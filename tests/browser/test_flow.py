"""An annotator's way through OHIF with the models that ship: list, open, segment, click, undo, save, come again."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from rayapp.config import ohif_folder
from rayapp.geometry import index_to_mm
from rayapp.imaging import mask_codec
from rayapp.imaging.phantom import ORGANS, phantom
from tests.browser.conftest import Viewer
from tests.conftest import SHAPE
from tests.gateway.conftest import Serve, Served, write_image
from tests.jobs.plain import APP, label_all

pytestmark = pytest.mark.browser

SEED = 5_000_002  # whose grid is left-handed
LIVER = ORGANS["liver"]


@pytest.fixture(scope="module")
def torso(serve: Serve) -> Served:
    return serve(
        app="radiology",
        models=("deepedit", "segmentation", "scribbles", "deepgrow_3d"),
        ohif=ohif_folder(),
        max_body=64 << 20,
        max_volume=64 << 20,
    )


@pytest.fixture
def image(torso: Served) -> str:
    """A torso that no other test works on."""
    studies, (volume, _) = torso.settings.studies, phantom(SEED, shape=SHAPE)
    name = f"torso_{len(list(studies.glob('torso_*')))}"
    write_image(studies / f"{name}.nii.gz", volume.array[0], volume.affine)
    torso.store.refresh()
    return name


def test_list_open_segment_click_undo_save_and_come_again(torso: Served, image: str, viewer: Viewer):
    page, file = viewer.page, torso.settings.studies / f"{image}.nii.gz"
    page.goto(f"{torso.url}/ohif/")
    page.get_by_text(image, exact=True).first.click()
    viewer.picture("1-list")
    page.get_by_text("Label with rayapp").first.click()
    assert viewer.said() == "ready; this image has no final label yet"

    page.locator(".rayapp select[name=automatic]").select_option("segmentation")
    assert viewer.press("segment").startswith("segmentation, ")
    automatic, _ = viewer.voxels(file)
    answer = torso.post(f"/infer/segmentation?image={image}&output=box", data={"params": "{}"})
    np.testing.assert_array_equal(automatic, mask_codec.decode(answer.content))
    liver = np.argwhere(phantom(SEED, shape=SHAPE)[1].array == LIVER)
    world = [
        index_to_mm(nibabel.load(file).affine, voxel) * [-1, -1, 1] for voxel in (liver[len(liver) // 2], liver[9])
    ]
    viewer.show(world[0])
    viewer.picture("2-segmented")

    viewer.use("foreground")
    with page.expect_response("**/stream"):  # where a better mask may follow the first one
        assert viewer.click(world[0]).startswith("liver at ")
    first, _ = viewer.voxels(file)
    viewer.picture("3-clicked")
    viewer.show(world[1])
    viewer.use("background")
    assert viewer.click(world[1]).startswith("background at ")
    second, _ = viewer.voxels(file)
    assert (second != first).any()
    assert viewer.press("undo") == "undone"
    np.testing.assert_array_equal(viewer.voxels(file)[0], first)
    viewer.picture("4-undone")
    (work,) = torso.get(f"/interactions?image={image}").json()
    assert [event["kind"] for event in work["events"]] == ["prompt", "prompt", "undo"]
    now = torso.get(f"/interactions/{work['id']}/mask")
    np.testing.assert_array_equal(mask_codec.decode(now.content), first)

    page.reload()
    assert viewer.said() == "ready; your work is restored, and not saved yet"
    np.testing.assert_array_equal(viewer.voxels(file)[0], first)
    assert viewer.dots() == 1
    viewer.show(world[1])
    viewer.use("background")
    assert viewer.click(world[1]).startswith("background at ")
    np.testing.assert_array_equal(viewer.voxels(file)[0], second)
    assert viewer.press("undo") == "undone"
    assert viewer.press("undo") == "undone"
    np.testing.assert_array_equal(viewer.voxels(file)[0], automatic)
    assert viewer.dots() == 0
    assert [one["id"] for one in torso.get(f"/interactions?image={image}").json()] == [work["id"]]
    viewer.show(world[0])
    viewer.use("foreground")
    assert viewer.click(world[0]).startswith("liver at ")
    np.testing.assert_array_equal(viewer.voxels(file)[0], first)

    assert viewer.press("save") == "saved"
    saved = nibabel.load(torso.store.label(image, "final").path)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), first)
    page.reload()
    assert viewer.said() == "ready; showing the final label"
    np.testing.assert_array_equal(viewer.voxels(file)[0], first)
    viewer.show(world[0])
    viewer.picture("5-reloaded")


def test_points_correct_what_was_saved_and_leave_the_rest(torso: Served, image: str, viewer: Viewer, tmp_path: Path):
    file, organs = torso.settings.studies / f"{image}.nii.gz", phantom(SEED, shape=SHAPE)[1].array
    affine = nibabel.load(file).affine
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2:9, 40:47, 3:6] = ORGANS["spleen"]
    nibabel.Nifti1Image(drawn, affine).to_filename(tmp_path / "drawn.nii.gz")
    torso.save(image, tmp_path / "drawn.nii.gz", label_info=[{"name": "spleen", "idx": ORGANS["spleen"]}])
    assert viewer.open(torso.url, image) == "ready; showing the final label"
    liver = np.argwhere(organs == LIVER)
    voxel = liver[len(liver) // 2]
    world = index_to_mm(affine, voxel) * [-1, -1, 1]
    viewer.show(world)
    viewer.use("foreground")
    assert viewer.click(world).startswith("liver at ")
    found, _ = viewer.voxels(file)
    assert found[tuple(voxel)] == LIVER
    np.testing.assert_array_equal(found == ORGANS["spleen"], drawn > 0)
    assert viewer.press("undo") == "undone"
    np.testing.assert_array_equal(viewer.voxels(file)[0], drawn)


def test_ends_and_a_curve_are_prompts_too(torso: Served, image: str, viewer: Viewer):
    file, organs = torso.settings.studies / f"{image}.nii.gz", phantom(SEED, shape=SHAPE)[1].array
    affine, liver = nibabel.load(file).affine, np.argwhere(organs == LIVER)
    viewer.open(torso.url, image)
    ends = [liver[np.argmin(liver[:, axis])] for axis in range(3)] + [
        liver[np.argmax(liver[:, axis])] for axis in range(3)
    ]
    viewer.use("extreme")
    for left, voxel in zip(range(5, -1, -1), ends, strict=True):
        world = index_to_mm(affine, voxel) * [-1, -1, 1]
        viewer.show(world)
        said = viewer.click(world)
        assert f"; {left} more point" in said if left else said.startswith("extreme points of liver; deepedit, ")
    assert viewer.dots() == 6
    viewer.picture("8-ends")
    k = int(np.argmax((organs == LIVER).sum((0, 1))))
    i, j = np.argwhere(organs[:, :, k] == LIVER).mean(0)
    around = [(i + 6 * np.cos(turn), j + 6 * np.sin(turn), k) for turn in np.linspace(0, 2 * np.pi, 12)]
    worlds = [index_to_mm(affine, voxel) * [-1, -1, 1] for voxel in around]
    viewer.show(worlds[0])
    viewer.use("curve")
    assert viewer.after(lambda: viewer.draw(worlds)).startswith("closed curve around liver; deepedit, ")
    viewer.picture("9-curve")
    found, _ = viewer.voxels(file)
    assert found[round(i), round(j), k] == LIVER
    prompts = torso.get(f"/interactions?image={image}").json()[-1]["prompts"]
    assert prompts[0]["extremes"] == {"liver": [end.tolist() for end in ends]}
    (curve,) = prompts[1]["curves"]
    assert {point[2] for point in curve} == {k}
    assert np.abs(np.hypot(*(np.array(curve)[:, :2] - [i, j]).T) - 6).max() < 1.5
    assert viewer.press("undo") == viewer.press("undo") == "undone"
    assert viewer.dots() == 0


def test_a_larger_and_a_smaller_structure_are_one_key_away(torso: Served, image: str, viewer: Viewer):
    file, organs = torso.settings.studies / f"{image}.nii.gz", phantom(SEED, shape=SHAPE)[1].array
    middle = np.unravel_index(ndimage.distance_transform_edt(organs == LIVER).argmax(), organs.shape)
    world = index_to_mm(nibabel.load(file).affine, np.array(middle)) * [-1, -1, 1]
    viewer.open(torso.url, image)
    assert viewer.after(lambda: viewer.page.keyboard.press("Shift+L")).startswith("the model knows no larger")
    viewer.page.locator(".rayapp select[name=prompted]").select_option("deepgrow_3d")
    viewer.use("foreground")
    viewer.show(world)
    said = viewer.click(world)
    usual, _ = viewer.voxels(file)
    assert usual[middle] == LIVER
    away, back, size = ("Shift+L", "Shift+K", 1) if "larger" in said else ("Shift+K", "Shift+L", -1)
    assert f"({away})" in said
    viewer.after(lambda: viewer.page.keyboard.press(away))
    other, _ = viewer.voxels(file)
    assert other[middle] == LIVER
    assert (other != usual).any()
    viewer.picture("10-another-size")
    viewer.after(lambda: viewer.page.keyboard.press(back))
    np.testing.assert_array_equal(viewer.voxels(file)[0], usual)
    assert viewer.press("undo") == "undone"
    np.testing.assert_array_equal(viewer.voxels(file)[0], other)
    prompts = torso.get(f"/interactions?image={image}").json()[-1]["prompts"]
    assert [prompt.get("size", 0) for prompt in prompts] == [0, size]


def test_keys_do_what_the_buttons_do_and_what_goes_wrong_is_told(torso: Served, image: str, viewer: Viewer):
    viewer.open(torso.url, image)
    assert viewer.after(lambda: viewer.page.keyboard.press("Shift+Z")) == "nothing to undo"
    assert viewer.after(lambda: viewer.page.keyboard.press("Shift+A")).startswith(("deepedit", "segmentation"))
    viewer.page.route("**/infer/**", lambda route: route.abort())
    assert viewer.press("segment") == "the server does not answer: is it running?"
    viewer.page.unroute("**/infer/**")
    viewer.page.route("**/infer/**", lambda route: route.fulfill(status=503, json={"detail": "all replicas are busy"}))
    assert viewer.press("segment") == "all replicas are busy"
    viewer.wrong.clear()  # those two


def test_strokes_and_a_box_outline_a_structure_and_are_not_saved_with_it(torso: Served, image: str, viewer: Viewer):
    file = torso.settings.studies / f"{image}.nii.gz"
    affine, organs = nibabel.load(file).affine, phantom(SEED, shape=SHAPE)[1].array
    viewer.open(torso.url, image)
    viewer.page.locator(".rayapp select[name=scribbled]").select_option("Histogram+GraphCut")
    assert "draw foreground and background strokes" in viewer.press("scribble")
    k = int(np.argmax((organs == LIVER).sum((0, 1))))
    inside = np.argwhere(ndimage.binary_erosion(organs[:, :, k] == LIVER, iterations=5))
    outside = np.argwhere(ndimage.binary_erosion(organs[:, :, k] == 0, iterations=5))

    def worlds(plane: np.ndarray) -> list[np.ndarray]:
        return [index_to_mm(affine, [*plane[at], k]) * [-1, -1, 1] for at in (0, len(plane) // 2, -1)]

    viewer.show(worlds(inside)[0])
    viewer.use("stroke-on")
    viewer.draw(worlds(inside))
    viewer.use("stroke-off")
    viewer.draw(worlds(outside)[:2])
    viewer.picture("6-strokes")
    drawn, _ = viewer.voxels(file)
    assert {253, 254} <= set(np.unique(drawn))
    viewer.use("corner")
    corners = [np.argwhere(organs == LIVER).min(0), np.argwhere(organs == LIVER).max(0)]
    for corner in corners:
        viewer.show(index_to_mm(affine, corner) * [-1, -1, 1])
        said = viewer.click(index_to_mm(affine, corner) * [-1, -1, 1])
    assert said.startswith("box ")
    assert viewer.press("scribble").startswith("Histogram+GraphCut, ")
    found, _ = viewer.voxels(file)
    viewer.show(worlds(inside)[0])
    viewer.picture("7-outlined")
    assert set(np.unique(found)) == {0, LIVER}
    low, high = (np.argwhere(found == LIVER).min(0), np.argwhere(found == LIVER).max(0))
    assert (low >= corners[0]).all()
    assert (high <= corners[1]).all()
    assert (found[drawn == 254] == LIVER).mean() > 0.9  # but for what of the stroke lies beyond the box
    assert viewer.press("save") == "saved"
    np.testing.assert_array_equal(np.asarray(nibabel.load(torso.store.label(image, "final").path).dataobj), found)


def test_a_training_is_started_and_followed(serve: Serve, viewer: Viewer):
    served = serve(app=str(APP), models=("bright", "shiny"), ohif=ohif_folder())
    label_all(served.store, served.settings.studies)
    viewer.open(served.url, "ct_a")
    assert viewer.press("train").startswith("training ")
    viewer.page.locator(".rayapp .trained[data-status=DONE]").wait_for()
    (job,) = served.get("/jobs").json()
    assert job["status"] == "DONE"
    assert viewer.press("stop-training") == "no training is running"
