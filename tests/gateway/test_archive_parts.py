"""Volumes of an archive's series as a viewer sees them through the proxy: a series for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from rayapp.imaging.reader import read_volume
from tests.gateway.conftest import Serve, Served
from tests.imaging.grids import AFFINES, MAX, voxels
from tests.imaging.series import edit, write_series
from tests.orthanc import Orthanc, needs_orthanc, orthanc
from tests.waiting import until

pytestmark = needs_orthanc

SERIES, PLAIN, STUDY = "1.2.3.1", "1.2.3.2", "1.2.9"
LIST = f"/proxy/dicom/qido/studies/{STUDY}/series"


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A study of a series with two echoes, and of a plain one."""
    folder = tmp_path_factory.mktemp("archive")
    with orthanc(folder) as running:
        for echo in (1, 2):
            files = write_series(
                folder / str(echo), voxels() + np.int16(1000 * echo), AFFINES["oblique"], series=SERIES, study=STUDY
            )
            for file in files:
                edit(file, EchoNumbers=echo)
            running.store(files)
        running.store(write_series(folder / "plain", voxels(), AFFINES["oblique"], series=PLAIN, study=STUDY))
        yield running


@pytest.fixture(scope="module")
def served(serve: Serve, held: Orthanc) -> Served:
    return serve(archived=True, dicomweb={"url": held.url})


def _listed(served: Served, query: str = "") -> dict[str, dict[str, object]]:
    answer = served.get(LIST + query, headers={"Accept": "application/dicom+json"})
    assert answer.status_code == 200, answer.text
    return {item["0020000E"]["Value"][0]: item for item in answer.json()}


def test_each_volume_of_a_series_is_a_series_for_viewers_once_it_was_opened(served: Served, held: Orthanc) -> None:
    assert _listed(served).keys() == {SERIES, PLAIN}
    refused = served.get(f"/viewer/image?series={SERIES}")
    assert refused.status_code == 422
    echoes = [f"{SERIES}_echo-1", f"{SERIES}_echo-2"]
    until(lambda: {*echoes, PLAIN} == _listed(served).keys())
    assert "echo-2" in str(_listed(served)[echoes[1]]["0008103E"])
    assert _listed(served, f"?SeriesInstanceUID={echoes[1]}").keys() == {echoes[1]}
    assert _listed(served, f"?SeriesInstanceUID={PLAIN}").keys() == {PLAIN}

    for number, image_id in enumerate(echoes, start=1):
        answer = served.get(f"/viewer/image?series={image_id}")
        assert answer.status_code == 200, answer.text
        shown = answer.json()
        assert (shown["image"], shown["series"]) == (image_id, image_id)
        home = f"/proxy/dicom/wado/studies/{STUDY}/series/{image_id}"
        slices = served.get(f"{home}/metadata", headers={"Accept": "application/dicom+json"}).json()
        assert {item["0020000E"]["Value"][0] for item in slices} == {image_id}
        assert {item["00180086"]["Value"][0] for item in slices} == {number}
        volume = read_volume(served.store.image(image_id).path, max_bytes=MAX).array[0]
        assert len(slices) == volume.shape[2]
        slices.sort(key=lambda item: _along_the_normal(item))
        for k, item in enumerate(slices):
            pixels = _frame(served, f"{home}/instances/{item['00080018']['Value'][0]}/frames/1")
            np.testing.assert_array_equal(pixels.reshape(volume.shape[1::-1]), volume[:, :, k].T)
    assert served.get(f"/proxy/dicom/wado/studies/{STUDY}/series/{echoes[0]}").status_code == 404
    whole = served.get(f"/proxy/dicom/wado/studies/{STUDY}/series/{SERIES}/metadata")
    assert len(whole.json()) == 2 * voxels().shape[2]


def _along_the_normal(item: dict[str, dict[str, list[float]]]) -> float:
    row, column = np.reshape(item["00200037"]["Value"], (2, 3))
    return float(np.cross(row, column) @ np.array(item["00200032"]["Value"], float))


def _frame(served: Served, path: str) -> np.ndarray:
    answer = served.get(path, headers={"Accept": 'multipart/related; type="application/octet-stream"'})
    assert answer.status_code == 200, answer.text
    body = answer.content.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
    return np.frombuffer(body, "<i2")


def test_the_first_of_several_volumes_that_kept_the_series_uid_shows_its_own_slices(
    served: Served, held: Orthanc, tmp_path: Path
) -> None:
    series = "1.2.3.7"
    for echo in (1, 2):
        files = write_series(tmp_path / str(echo), voxels(), AFFINES["oblique"], series=series, study="1.2.8")
        for file in files:
            edit(file, EchoNumbers=echo)
        held.store(files)
        served.store.refresh()
        assert served.get(f"/viewer/image?series={series}").json()["series"] == series
    until(lambda: f"{series}_echo-2" in served.store.image_ids())
    home = f"/proxy/dicom/wado/studies/1.2.8/series/{series}"
    slices = served.get(f"{home}/metadata", headers={"Accept": "application/dicom+json"}).json()
    assert {item["00180086"]["Value"][0] for item in slices} == {1}
    listed = requests.get(f"{served.url}/proxy/dicom/qido/studies/1.2.8/series", timeout=30).json()
    assert [item["0020000E"]["Value"][0] for item in listed] == [series, f"{series}_echo-2"]
