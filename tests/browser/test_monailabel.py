"""MONAI Label's own OHIF, as its wheel ships it, pointed at us: it connects, segments and prompts with points."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from rayapp.geometry import index_to_mm
from rayapp.imaging import mask_codec
from rayapp.imaging.dicom_instances import uid_of
from rayapp.imaging.phantom import ORGANS, phantom
from tests.browser.conftest import Viewer
from tests.conftest import SHAPE
from tests.gateway.conftest import Serve, Served, write_image

pytestmark = pytest.mark.browser

SEED = 5_000_002  # whose grid is left-handed: the viewer counts slices the other way
NAMES = sorted([*ORGANS, "background"])
_VOLUME = """cornerstone.cache.getVolume(
    cornerstoneTools.segmentation.state.getSegmentation('1')?.representationData.Labelmap.volumeId ?? 'none'
)"""
_READ = f"""() => {{
    const volume = {_VOLUME};
    const {{ dimensions, direction, origin, spacing }} = volume;
    const labels = Array.from(volume.voxelManager.getCompleteScalarDataArray());
    return {{ dimensions, direction: Array.from(direction), origin: Array.from(origin), spacing, labels }};
}}"""


@pytest.fixture(scope="module")
def torso(serve: Serve) -> Served:
    spec = importlib.util.find_spec("monailabel")
    build = Path(spec.origin).parent / "endpoints" / "static" / "ohif" if spec and spec.origin else Path("absent")
    if not build.is_dir():
        pytest.skip("no OHIF of MONAI Label: pip install --no-deps monailabel==0.8.5")
    models = ("deepedit", "segmentation")
    served = serve(app="radiology", models=models, ohif=build, max_body=64 << 20, max_volume=64 << 20)
    volume, _ = phantom(SEED, shape=SHAPE)
    write_image(served.settings.studies / "torso.nii.gz", volume.array[0], volume.affine)
    served.store.refresh()
    return served


def segments(viewer: Viewer, file: Path) -> npt.NDArray[np.uint8]:
    """What the viewer shows, on the image's grid, placed by mm; values are those of `ORGANS`."""
    image: Any = nibabel.load(file)
    shown = viewer.page.evaluate(_READ)
    labels = np.reshape(shown["labels"], shown["dimensions"], order="F")
    axes = np.reshape(shown["direction"], (3, 3)).T * shown["spacing"]
    where = np.argwhere(labels > 0)
    ras = (where @ axes.T + shown["origin"]) * [-1, -1, 1]
    back = np.linalg.inv(image.affine)
    index = ras @ back[:3, :3].T + back[:3, 3]
    np.testing.assert_allclose(index, np.rint(index), atol=0.02)
    found = np.zeros(image.shape, np.uint8)
    found[tuple(np.rint(index).astype(int).T)] = [ORGANS[NAMES[value - 1]] for value in labels[labels > 0]]
    return found


def test_its_panel_connects_segments_and_prompts_with_points(torso: Served, viewer: Viewer):
    page, file = viewer.page, torso.settings.studies / "torso.nii.gz"
    page.context.add_cookies([{"name": "MONAILABEL_SERVER_URL", "value": torso.url + "/", "url": torso.url}])
    page.goto(f"{torso.url}/ohif/monai-label?StudyInstanceUIDs={uid_of('study', 'torso')}")
    page.locator("#monailabelServerURL").wait_for()
    page.wait_for_function("cornerstone.getRenderingEngines()?.[0]?.getVolumeViewports().length > 0")
    page.locator(".settingsTable button.actionButton").first.click()
    viewer.picture("monailabel-0-connected")
    page.wait_for_function(f"Boolean({_VOLUME})")
    with page.expect_response("**/infer/segmentation?*") as answered:
        page.locator("button[title='Run Segmentation']").click()
    assert answered.value.status == 200
    assert f"image={uid_of('series', 'torso')}" in answered.value.url
    page.wait_for_function(f"{_VOLUME}.voxelManager.getCompleteScalarDataArray().some(x => x)")
    viewer.picture("monailabel-1-segmented")
    ours = torso.post("/infer/segmentation?image=torso&output=box", data={"params": "{}"})
    np.testing.assert_array_equal(segments(viewer, file), mask_codec.decode(ours.content))

    page.get_by_text("Point Prompts").click()
    page.locator("tr.clickable-row", has_text="liver").first.click()
    liver = np.argwhere(phantom(SEED, shape=SHAPE)[1].array == ORGANS["liver"])
    voxel = liver[len(liver) // 2]
    world = index_to_mm(np.asarray(nibabel.load(file).affine), voxel) * [-1, -1, 1]
    x, y = page.evaluate(
        """world => {
            const [viewport] = cornerstone.getRenderingEngines()[0].getVolumeViewports();
            viewport.setCamera({ ...viewport.getCamera(), focalPoint: world });
            viewport.jumpToWorld?.(world);
            viewport.render();
            const [x, y] = viewport.worldToCanvas(world);
            const box = viewport.canvas.getBoundingClientRect();
            return [x + box.x, y + box.y];
        }""",
        world.tolist(),
    )
    page.mouse.click(x, y, delay=30)
    page.wait_for_function(
        "cornerstoneTools.annotation.state.getAllAnnotations().some(a => a.metadata.toolName === 'ProbeMONAILabel')"
    )
    viewer.picture("monailabel-2-clicked")
    with page.expect_response("**/infer/deepedit?*") as answered:
        page.locator("button[title='Run PointPrompts']").click()
    assert answered.value.status == 200
    call = torso.network.calls[-1]
    assert call.path is not None  # the series as the viewer counts it
    (clicked,) = call.params["liver"]
    np.testing.assert_allclose(clicked, [*voxel[:2], SHAPE[2] - 1 - voxel[2]], atol=1)
    viewer.picture("monailabel-3-prompted")
    idle = [one for one in viewer.wrong if "/train/?check_if_running=true" in one]  # 404 says that nothing is trained
    assert idle == viewer.wrong
    viewer.wrong.clear()
