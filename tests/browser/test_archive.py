"""The same with a real archive behind: Orthanc's series in OHIF, and what is saved is in Orthanc as DICOM SEG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rayapp.config import ohif_folder
from rayapp.datastore import archive_sender
from rayapp.geometry import index_to_mm
from rayapp.imaging.dicom_seg import read_segmentation
from rayapp.imaging.reader import read_grid
from tests.browser.conftest import Viewer
from tests.front import BROKEN, CUT, DENIED, PLAIN, SLOW, Front, front
from tests.gateway.conftest import Serve, Served
from tests.imaging.grids import AFFINES, MAX, voxels
from tests.imaging.series import compress, edit, enhanced, tilt, write_series
from tests.orthanc import Orthanc, needs_orthanc, orthanc
from tests.waiting import until

pytestmark = [pytest.mark.browser, needs_orthanc]

SHAPE = (13, 11, 7)
SERIES, STUDY = "1.2.3.1", "1.2.3.1.9"
COMPRESSED, ENHANCED, TILTED, ECHOES = "1.2.3.2", "1.2.3.3", "1.2.3.4", "1.2.3.5"
JPEG_LS = "1.2.840.10008.1.2.4.80"


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A CT of plain slices, a compressed MR, a CT of one file, one of a tilted gantry, and a series of two echoes."""
    folder, array = tmp_path_factory.mktemp("archive"), voxels(SHAPE) % 200

    def written(series: str, affine: str, modality: str = "CT") -> list[Path]:
        given = {"series": series, "study": f"{series}.9", "modality": modality}
        return write_series(folder / series, array, AFFINES[affine], **given)

    with orthanc(folder) as running:
        running.store(written(SERIES, "oblique-flipped"))
        files = written(COMPRESSED, "left-handed", "MR")
        compress(files, JPEG_LS)
        running.store(files)
        running.store(enhanced(folder / "enhanced", written(ENHANCED, "oblique")).iterdir())
        files = written(TILTED, "straight")
        tilt(files)
        running.store(files)
        for echo in (1, 2):
            brighter = array + np.int16(30 * echo)
            files = write_series(
                folder / f"echo{echo}", brighter, AFFINES["oblique"], series=ECHOES, study=f"{ECHOES}.9", modality="MR"
            )
            for file in files:
                edit(file, EchoNumbers=echo)
            running.store(files)
        yield running


@pytest.fixture(scope="module")
def before(held: Orthanc) -> Iterator[Front]:
    with front(held.root) as standing:
        yield standing


@pytest.fixture(scope="module")
def archived(serve: Serve, before: Front) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive_sender, "RETRY_S", 0.1)
        yield serve(archived=True, dicomweb={"url": before.url + "/dicom-web", "timeout": 2.0}, ohif=ohif_folder())


@pytest.fixture(autouse=True)
def as_before(archived: Served, before: Front, held: Orthanc) -> Iterator[None]:
    """Each test finds an archive that answers, and no label."""
    yield
    for series in (SERIES, COMPRESSED, ENHANCED):
        archived.store.remove_label(series, "final")
    before.way, before.only = PLAIN, ""
    for seg in held.find("Series", {"Modality": "SEG"}):
        held.remove("series", seg)


def test_what_keeps_a_series_away_is_told_and_it_opens_when_that_is_over(
    archived: Served, before: Front, viewer: Viewer
):
    before.way, before.only = BROKEN, "/instances?"  # which OHIF does not ask for
    viewer.page.goto(f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={STUDY}")
    assert viewer.said() == "the DICOM archive answers with status 500"
    viewer.picture("archive-500")
    for way, told in (
        (SLOW, "did not answer in time"),
        (CUT, "broke off"),
        (DENIED, "denies this server access (401)"),
    ):
        before.way = way
        assert told in viewer.press("again")
    before.way = PLAIN
    assert viewer.press("again") == "ready; this image has no final label yet"
    assert not viewer.page.locator(".rayapp button[name=again]").is_visible()
    viewer.wrong.clear()  # those four


def test_without_its_archive_the_viewer_says_so_and_a_label_saved_meanwhile_gets_there(
    archived: Served, before: Front, held: Orthanc, viewer: Viewer
):
    page, address = viewer.page, f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={STUDY}"
    page.goto(address)
    assert viewer.said() == "ready; this image has no final label yet"
    viewer.press("segment")
    before.way = BROKEN
    assert viewer.press("save") == "saved"
    page.locator(".rayapp .archived[data-state=waiting]").wait_for()
    viewer.picture("archive-waiting")
    labels, _ = viewer.voxels(archived.store.image(SERIES).path)
    page.goto(address)
    page.get_by_text("the DICOM archive answers with status 500").first.wait_for()
    viewer.picture("archive-away")
    page.goto(f"{archived.url}/ohif/")
    page.get_by_text("the DICOM archive answers with status 500").first.wait_for()
    page.get_by_text("Data Source Connection Error").wait_for()
    page.wait_for_timeout(500)  # until it is drawn
    viewer.picture("archive-away-list")
    before.only = "POST"
    page.goto(address)
    assert viewer.said() == "ready; showing the final label"
    np.testing.assert_array_equal(viewer.voxels(archived.store.image(SERIES).path)[0], labels)
    page.locator(".rayapp .archived[data-state=waiting]").wait_for()
    assert held.client().search_for_series(STUDY, search_filters={"Modality": "SEG"}) == []
    before.way = PLAIN
    page.locator(".rayapp .archived[data-state=there]").wait_for()
    assert len(held.client().search_for_series(STUDY, search_filters={"Modality": "SEG"})) == 1
    viewer.wrong.clear()


@pytest.mark.parametrize(
    ("way", "told"),
    [(BROKEN, "the DICOM archive answers with status 500"), (SLOW, "did not answer in time"), (CUT, "broke off")],
)
def test_slices_that_do_not_come_are_told_and_come_later(
    archived: Served, before: Front, viewer: Viewer, way: str, told: str
):
    before.way, before.only = way, "/frames/"
    viewer.page.goto(f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={STUDY}")
    viewer.page.get_by_text(told).first.wait_for()
    viewer.picture(f"archive-frames-{way}")
    before.way = PLAIN
    viewer.page.reload()
    assert viewer.said() == "ready; this image has no final label yet"
    values = viewer.voxels(archived.store.image(SERIES).path)[1]
    assert sorted(values.ravel()) == sorted(voxels(SHAPE).ravel() % 200)
    viewer.wrong.clear()


def test_what_is_no_volume_is_refused_in_words(archived: Served, viewer: Viewer):
    viewer.page.goto(f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={TILTED}.9")
    assert "gantry tilt" in viewer.said()
    viewer.picture("archive-tilted")
    viewer.wrong.clear()


def test_each_volume_of_a_series_is_segmented_and_saved_as_a_series_of_its_own(archived: Served, viewer: Viewer):
    page, study = viewer.page, f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={ECHOES}.9"
    page.goto(study)
    assert "holds 2 volumes" in viewer.said()
    viewer.wrong.clear()
    for echo in (1, 2):
        image_id = f"{ECHOES}_echo-{echo}"
        until(lambda image_id=image_id: image_id in archived.store.image_ids())
        page.goto(f"{study}&SeriesInstanceUIDs={image_id}")
        page.reload()
        assert viewer.said() == "ready; this image has no final label yet"
        assert "bright" in viewer.press("segment")
        labels, values = viewer.voxels(archived.store.image(image_id).path)
        np.testing.assert_array_equal(np.sort(values.ravel()), np.sort(voxels(SHAPE).ravel() % 200 + 30 * echo))
        np.testing.assert_array_equal(labels, values > 100)
        assert viewer.press("save") == "saved"
        viewer.page.locator(".rayapp .archived[data-state=there]").wait_for()
        assert "final" in archived.store.labels(image_id)
        archived.store.remove_label(image_id, "final")


@pytest.mark.parametrize("series", [SERIES, COMPRESSED, ENHANCED], ids=["plain", "compressed", "enhanced"])
def test_segment_and_save_in_an_archive(archived: Served, held: Orthanc, viewer: Viewer, tmp_path: Path, series: str):
    page, study = viewer.page, f"{series}.9"
    page.goto(f"{archived.url}/ohif/rayapp?StudyInstanceUIDs={study}")
    assert viewer.said() == "ready; this image has no final label yet"
    file = archived.store.image(series).path
    assert "bright" in viewer.press("segment")
    labels, values = viewer.voxels(file)
    np.testing.assert_array_equal(labels, values > 100)
    assert 0 < labels.sum() < labels.size

    world = index_to_mm(read_grid(file).affine, [9, 2, 5]) * [-1, -1, 1]
    viewer.show(world)
    viewer.use("foreground")
    assert "at 9, 2, 5" in viewer.click(world)
    assert viewer.press("save") == "saved"
    viewer.page.locator(".rayapp .archived[data-state=there]").wait_for()
    (found,) = held.client().search_for_series(study, search_filters={"Modality": "SEG"})
    (seg,) = held.client().retrieve_series(study, found["0020000E"]["Value"][0])
    seg.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    stored = read_segmentation(tmp_path / "seg.dcm", read_grid(file), max_bytes=MAX)
    np.testing.assert_array_equal(stored.array, labels)
    assert stored.names == {"bright": 1}

    page.reload()
    assert viewer.said() == "ready; showing the final label"
    np.testing.assert_array_equal(viewer.voxels(file)[0], labels)
    viewer.picture(f"archive-{series}")
