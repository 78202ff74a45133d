"""MONAI Label's own OHIF, as its wheel ships it, pointed at us: it connects, segments and prompts with points, whether
the images lie in a folder or in an archive."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
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
from tests.imaging.series import write_series
from tests.orthanc import needs_orthanc, orthanc

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


@dataclass(frozen=True)
class Opened:
    """A torso that is served, as its `file` has it; `backwards` if the viewer counts its slices the other way."""

    served: Served
    image: str
    study: str
    series: str
    file: Path
    organs: npt.NDArray[Any]
    backwards: bool


@pytest.fixture(scope="module")
def build() -> Path:
    spec = importlib.util.find_spec("monailabel")
    found = Path(spec.origin).parent / "endpoints" / "static" / "ohif" if spec and spec.origin else Path("absent")
    if not found.is_dir():
        pytest.skip("no OHIF of MONAI Label: pip install --no-deps monailabel==0.8.5")
    return found


@pytest.fixture(scope="module", params=["folder", pytest.param("archive", marks=needs_orthanc)])
def torso(
    request: pytest.FixtureRequest, serve: Serve, build: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    options: dict[str, Any] = {
        "app": "radiology",
        "models": ("deepedit", "segmentation"),
        "ohif": build,
        "max_body": 64 << 20,
        "max_volume": 64 << 20,
    }
    volume, organs = phantom(SEED, shape=SHAPE)
    if request.param == "folder":
        served = serve(**options)
        file = write_image(served.settings.studies / "torso.nii.gz", volume.array[0], volume.affine)
        served.store.refresh()
        yield Opened(served, "torso", uid_of("study", "torso"), uid_of("series", "torso"), file, organs.array, True)
        return
    folder = tmp_path_factory.mktemp("archive")
    with orthanc(folder) as archive:
        archive.store(write_series(folder / "ct", volume.array[0], volume.affine, series="1.2.3.1", study="1.2.3"))
        served = serve(archived=True, dicomweb={"url": archive.url}, **options)
        file = served.store.image("1.2.3.1").path
        yield Opened(served, "1.2.3.1", "1.2.3", "1.2.3.1", file, organs.array[:, :, ::-1], False)


def segments(viewer: Viewer, file: Path) -> npt.NDArray[np.uint8]:
    """The segmentation on screen, resampled by mm onto the image's grid; values are those of `ORGANS`."""
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


def test_its_panel_connects_segments_and_prompts_with_points(torso: Opened, viewer: Viewer):
    page, file, url = viewer.page, torso.file, torso.served.url
    page.context.add_cookies([{"name": "MONAILABEL_SERVER_URL", "value": url + "/", "url": url}])
    page.goto(f"{url}/ohif/monai-label?StudyInstanceUIDs={torso.study}")
    page.locator("#monailabelServerURL").wait_for()
    page.wait_for_function("cornerstone.getRenderingEngines()?.[0]?.getVolumeViewports().length > 0")
    page.locator(".settingsTable button.actionButton").first.click()
    viewer.picture(f"monailabel-{torso.image}-0-connected")
    page.wait_for_function(f"Boolean({_VOLUME})")
    with page.expect_response("**/infer/segmentation?*") as answered:
        page.locator("button[title='Run Segmentation']").click()
    assert answered.value.status == 200
    assert f"image={torso.series}" in answered.value.url
    page.wait_for_function(f"{_VOLUME}.voxelManager.getCompleteScalarDataArray().some(x => x)")
    viewer.picture(f"monailabel-{torso.image}-1-segmented")
    ours = torso.served.post(f"/infer/segmentation?image={torso.image}&output=box", data={"params": "{}"})
    np.testing.assert_array_equal(segments(viewer, file), mask_codec.decode(ours.content))

    page.get_by_text("Point Prompts").click()
    page.locator("tr.clickable-row", has_text="liver").first.click()
    liver = np.argwhere(torso.organs == ORGANS["liver"])
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
    viewer.picture(f"monailabel-{torso.image}-2-clicked")
    with page.expect_response("**/infer/deepedit?*") as answered:
        page.locator("button[title='Run PointPrompts']").click()
    assert answered.value.status == 200
    call = torso.served.network.calls[-1]
    assert (call.path is not None) == torso.backwards  # the series as the viewer counts it
    (clicked,) = call.params["liver"]
    k = SHAPE[2] - 1 - voxel[2] if torso.backwards else voxel[2]
    np.testing.assert_allclose(clicked, [*voxel[:2], k], atol=1)
    viewer.picture(f"monailabel-{torso.image}-3-prompted")
    idle = [one for one in viewer.wrong if "/train/?check_if_running=true" in one]  # 404 says that nothing is trained
    assert idle == viewer.wrong
    viewer.wrong.clear()
