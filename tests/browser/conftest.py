"""Headless Chromium before a gateway that serves OHIF. Where one is absent, the tests are skipped and say so."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from rayapp.config import ohif_folder
from rayapp.downloads.ohif import is_prepared
from rayapp.imaging.dicom_instances import uid_of
from tests.gateway.conftest import serve

__all__ = ["serve"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    "--host-resolver-rules=MAP *.test 127.0.0.1",  # names of other machines, and of pages of elsewhere
)
PATIENCE_MS = 90_000
_HERE = re.compile(r"http://(127\.0\.0\.1|\w+\.test):")

# The labelmap as the viewer holds it, slice by slice, with the places and values of the image's pixels that its own
# loader gives: nothing here comes from our extension.
_READ = """async what => {
  const packed = (kind, numbers) => {
    const bytes = new Uint8Array(kind.from(numbers).buffer);
    let text = '';
    for (let at = 0; at < bytes.length; at += 32768) {
      text += String.fromCharCode(...bytes.subarray(at, at + 32768));
    }
    return btoa(text);
  };
  const { cache, imageLoader, metaData } = cornerstone;
  const all = cornerstoneTools.segmentation.state.getSegmentations();
  const held = all.find(one => one.segmentationId.startsWith(`rayapp-${what}-`));
  const { imageIds, referencedImageIds } = held.representationData.Labelmap;
  const slices = [];
  for (const [at, id] of referencedImageIds.entries()) {
    const image = await imageLoader.loadAndCacheImage(id);
    const plane = metaData.get('imagePlaneModule', id);
    slices.push({
      position: Array.from(plane.imagePositionPatient),
      right: Array.from(plane.rowCosines, x => x * plane.columnPixelSpacing),
      down: Array.from(plane.columnCosines, x => x * plane.rowPixelSpacing),
      columns: image.columns,
      labels: packed(Uint8Array, cache.getImage(imageIds[at]).voxelManager.getScalarData()),
      values: packed(Float64Array, image.getPixelData()),
    });
  }
  return slices;
}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    if not is_prepared(ohif_folder()):
        pytest.skip("no OHIF: rayapp ohif install")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield running
        running.close()


class Viewer:
    """A page with OHIF and our panel; what goes wrong in it fails the test at its end."""

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page = page
        self.pictures = pictures
        self.wrong: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        # OHIF's notice that it is for research lies over the page's foot until it is read.
        page.add_locator_handler(page.get_by_text("Confirm and hide"), lambda notice: notice.click())
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("response", lambda answer: self._heard(answer.status, answer.url))

    def _heard(self, status: int, url: str) -> None:
        if status >= 400 and "/fonts." not in url:
            self.wrong.append(f"{status} {url}")

    def open(self, url: str, image: str) -> str:
        """Open an image's study in our mode; what the panel says then."""
        self.page.goto(f"{url}/ohif/rayapp?StudyInstanceUIDs={uid_of('study', image)}")
        return self.said()

    def press(self, name: str) -> str:
        """Press a button of the panel; what it says then."""
        return self.after(self.page.locator(f".rayapp button[name={name}]").click)

    def use(self, name: str) -> None:
        """Choose what the mouse does."""
        self.page.locator(f".rayapp button[name={name}]").click()

    def after(self, act: Callable[[], None]) -> str:
        """The panel's message once it has finished what `act` starts."""
        turn = int(self.page.locator(".rayapp .status").get_attribute("data-turn") or 0)
        act()
        return self.said(turn)

    def said(self, turn: int = 0) -> str:
        """The panel's message once it has finished more than `turn` actions and is idle."""
        done = """turn => {
            const said = document.querySelector('.rayapp .status[data-state=done], .rayapp .status[data-state=wrong]');
            return said && Number(said.dataset.turn) > turn ? said.textContent : null;
        }"""
        return str(self.page.wait_for_function(done, arg=turn).json_value())

    def picture(self, name: str) -> None:
        self.page.screenshot(path=self.pictures / f"{name}.png")

    def show(self, world: npt.NDArray[np.float64]) -> None:
        """Go to the slice nearest to the point at these LPS mm."""
        self.page.evaluate(
            """async world => {
                const [viewport] = cornerstone.getRenderingEngines()[0].getViewports();
                const away = viewport.getImageIds().map(id => {
                    const { imagePositionPatient: at, rowCosines: r, columnCosines: c } =
                        cornerstone.metaData.get('imagePlaneModule', id);
                    const normal = [r[1] * c[2] - r[2] * c[1], r[2] * c[0] - r[0] * c[2], r[0] * c[1] - r[1] * c[0]];
                    return Math.abs(normal.reduce((sum, n, axis) => sum + n * (world[axis] - at[axis]), 0));
                });
                await cornerstone.utilities.jumpToSlice(viewport.element, {
                    imageIndex: away.indexOf(Math.min(...away)),
                });
                viewport.render();
            }""",
            world.tolist(),
        )

    def on_screen(self, world: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Position on the page of the point at these LPS coordinates in mm."""
        x, y = self.page.evaluate(
            """world => {
                const [viewport] = cornerstone.getRenderingEngines()[0].getViewports();
                const [x, y] = viewport.worldToCanvas(world);
                const box = viewport.canvas.getBoundingClientRect();
                return [x + box.x, y + box.y];
            }""",
            world.tolist(),
        )
        return x, y

    def click(self, world: npt.NDArray[np.float64]) -> str:
        """Click on a point, which must lie in the slice that is shown; what the panel says then."""
        x, y = self.on_screen(world)
        return self.after(lambda: self.page.mouse.click(x, y, delay=30))

    def draw(self, line: Sequence[npt.NDArray[np.float64]]) -> None:
        """Draw along these points with the button pressed."""
        mouse = self.page.mouse
        first, *others = [self.on_screen(world) for world in line]
        mouse.move(*first)
        mouse.down()
        for point in others:
            mouse.move(*point, steps=12)
        mouse.up()

    def dots(self) -> int:
        """Number of points on the screen."""
        tools = "cornerstoneTools.annotation.state.getAllAnnotations().map(one => one.metadata.toolName)"
        return int(self.page.evaluate(f"{tools}.filter(name => name === 'RayappPoint').length"))

    def voxels(self, image: Path, what: str = "label") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The viewer's labels and its image's values, (I, J, K) on the grid of this NIfTI file, placed by mm."""
        file = nibabel.load(image)
        back = np.linalg.inv(file.affine)
        labels, values, seen = (np.zeros(file.shape, kind) for kind in (np.uint8, np.float64, np.uint8))
        for piece in self.page.evaluate(_READ, what):
            found, shown = (
                np.frombuffer(base64.b64decode(piece[key]), kind)
                for key, kind in (("labels", np.uint8), ("values", np.float64))
            )
            rows, columns = np.divmod(np.arange(len(found)), piece["columns"])
            lps = np.array(piece["position"]) + np.outer(columns, piece["right"]) + np.outer(rows, piece["down"])
            index = lps * [-1, -1, 1] @ back[:3, :3].T + back[:3, 3]
            where = np.rint(index).astype(int)
            np.testing.assert_allclose(index, where, atol=0.02)
            labels[tuple(where.T)], values[tuple(where.T)] = found, shown
            seen[tuple(where.T)] += 1
        assert (seen == 1).all()
        return labels, values


@pytest.fixture
def viewer(browser: Browser, tmp_path: Path) -> Iterator[Viewer]:
    """A page of a new profile. `RAYAPP_PICTURES` names a folder to keep its pictures in."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    # No page asks anything of another host.
    context.route(lambda url: not _HERE.match(url), lambda route: route.abort())
    shown = Viewer(context.new_page(), Path(os.environ.get("RAYAPP_PICTURES") or tmp_path))
    yield shown
    context.close()
    assert shown.wrong == []
