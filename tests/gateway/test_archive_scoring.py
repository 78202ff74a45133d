"""Scoring and batch inference on studies that lie in a real archive, and in a folder of DICOM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayapp.client import Client, JobKind
from rayapp.geometry import same_grid
from rayapp.imaging.reader import read_segmentation, read_volume
from tests.gateway.conftest import MAX_BODY, Serve, Served
from tests.imaging.grids import AFFINES, voxels
from tests.imaging.series import write_series
from tests.orthanc import needs_orthanc, orthanc

APP = Path(__file__).parents[1] / "apps" / "small"
SHAPE = (23, 19, 11)
SERIES = ("1.2.3.1", "1.2.3.2")


def write(folder: Path) -> list[Path]:
    """Two oblique series, in a study each."""
    return [
        file
        for number, series in enumerate(SERIES)
        for file in write_series(
            folder / series,
            np.roll(voxels(SHAPE), number, 0) % 200,
            AFFINES["left-handed"],
            series=series,
            study=f"{series}.9",
        )
    ]


def check(served: Served, tmp_path: Path) -> None:
    """Both series are scored, the maps lie on their grids, and what a batch found is saved as their label."""
    with Client(served.url) as client:
        *_, last = client.follow(client.start_job(JobKind.SCORING, "epistemic", {"samples": 2, "dropout": 0.3})["id"])
        assert (last["status"], last["result"]["executed"], last["result"]["failed"]) == ("DONE", 2, {}), last["result"]
        for series in SERIES:
            info = client.image_info(series)
            assert 0 < info["epistemic_entropy"] < np.log(3)
            grid = read_volume(client.download_image(series, tmp_path), max_bytes=MAX_BODY)
            unsure = read_segmentation(client.uncertainty("epistemic", series, tmp_path), max_bytes=MAX_BODY)
            assert same_grid(unsure.array.shape, unsure.affine, grid.shape, grid.affine)
            assert unsure.array.max() > 0
        assert client.next_sample("epistemic")["id"] in SERIES
        *_, last = client.follow(client.start_job(JobKind.BATCH, "small", {"label_tag": "final"})["id"])
        assert (last["status"], last["result"]["executed"], last["result"]["failed"]) == ("DONE", 2, {}), last["result"]
        for series in SERIES:
            assert client.has_label(series, "final")


@needs_orthanc
def test_series_of_an_archive_are_scored_and_labelled_in_a_batch(serve: Serve, tmp_path: Path):
    with orthanc(tmp_path) as held:
        held.store(write(tmp_path / "files"))
        check(
            serve(app=str(APP), models=("small",), archived=True, dicomweb={"url": held.root + "/dicom-web"}), tmp_path
        )


def test_series_in_a_folder_are_scored_and_labelled_in_a_batch(serve: Serve, tmp_path: Path):
    served = serve(app=str(APP), models=("small",))
    for name in ("ct_a", "ct_b", "ct_ü"):
        served.store.remove_image(name)
    write(served.settings.studies / "dicom")
    served.store.refresh()
    check(served, tmp_path)
