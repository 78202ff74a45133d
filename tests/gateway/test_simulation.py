"""Simulated annotators at work through the gateway: what they do, what it costs, what comes out."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rayapp.active_learning.annotator import Annotation, AnnotationTimes, Annotator, mean_dice
from rayapp.active_learning.outcome import Round, read_rounds
from rayapp.active_learning.simulation import Simulation, SimulationProtocol
from rayapp.cli import app as rayapp
from rayapp.client import AsyncClient
from rayapp.errors import RayappError
from tests.gateway.conftest import AFFINE, SHAPE, Serve, Served, write_image
from tests.gateway.test_interactions import APP as PAINTER
from tests.jobs.plain import APP as THRESHOLD
from tests.jobs.plain import write_images, write_label
from tests.waiting import until

HABITS = AnnotationTimes(click_s=5, review_s=30, manual_s=600, good_enough=1.0, max_clicks=4)


@pytest.fixture
def painted(serve: Serve, tmp_path: Path) -> Served:
    """A model that paints the voxel that is clicked."""
    (tmp_path / "main.py").write_text(PAINTER)
    return serve(app=str(tmp_path))


def reference(folder: Path, voxels: dict[tuple[int, int, int], int]) -> Path:
    array = np.zeros(SHAPE, np.uint8)
    for at, value in voxels.items():
        array[at] = value
    return write_image(folder / "reference.nii.gz", array, AFFINE)


def label(served: Served, truth: Path, *, model: str = "painter", times: AnnotationTimes = HABITS) -> Annotation:
    async def work() -> Annotation | None:
        async with AsyncClient(served.url, client_id="ann") as client:
            every = dict.fromkeys(served.store.image_ids(), truth)
            annotator = Annotator(
                name="ann", client=client, model=model, references=every, times=times, rng=np.random.default_rng(0)
            )
            done = await annotator.label_next("first")
            assert done is not None
            assert annotator.seconds == done.seconds
            return done

    found = asyncio.run(work())
    assert found is not None
    return found


def saved(served: Served, image: str) -> np.ndarray:
    return np.asarray(nibabel.load(served.store.label(image, "final").path).dataobj)


def test_an_annotator_clicks_until_the_mask_is_good_enough_and_saves_what_is_there(painted: Served, tmp_path: Path):
    truth = reference(tmp_path, {(1, 2, 3): 1, (4, 0, 6): 2, (12, 10, 0): 1})
    done = label(painted, truth)
    assert (done.image, done.clicks, done.by_hand, done.version) == ("ct_a", 3, False, "v1")
    assert (done.proposed_dice, done.saved_dice, done.seconds) == (0.0, 1.0, 30 + 3 * 5)
    assert np.array_equal(saved(painted, "ct_a"), np.asarray(nibabel.load(truth).dataobj))
    info = painted.store.label("ct_a", "final").info
    assert (info["annotator"], info["annotation_s"]) == ("ann", 45)


def test_what_clicks_cannot_mend_is_done_by_hand_for_its_share_of_the_time(painted: Served, tmp_path: Path):
    truth = reference(tmp_path, {(i, 2 * (i % 2), 3): 1 for i in range(6)})
    done = label(painted, truth, times=AnnotationTimes(good_enough=0.9, max_clicks=3))
    assert (done.clicks, done.by_hand, done.saved_dice) == (3, True, 1.0)
    assert done.seconds == pytest.approx(30 + 3 * 5 + 600 * (1 - 2 * 3 / (3 + 6)))
    assert np.array_equal(saved(painted, done.image), np.asarray(nibabel.load(truth).dataobj))


def test_an_annotator_may_draw_lines_instead(painted: Served, tmp_path: Path):
    truth = reference(tmp_path, {(i, 3, 5): 1 for i in range(2, 9)} | {(12, j, 0): 2 for j in range(4, 9)})
    done = label(painted, truth, times=AnnotationTimes(strokes=True, stroke_s=8, good_enough=1.0, max_clicks=4))
    assert (done.clicks, done.by_hand, done.seconds) == (2, False, 30 + 2 * 8)
    assert np.array_equal(saved(painted, done.image), np.asarray(nibabel.load(truth).dataobj))


def test_a_stroke_takes_away_what_is_too_much(serve: Serve, tmp_path: Path):
    (tmp_path / "main.py").write_text(PAINTER.replace("labels = np.zeros(", "labels = np.ones("))
    served = serve(app=str(tmp_path))
    truth = np.ones(SHAPE, np.uint8)
    truth[2:9, 3, 5] = 0
    done = label(
        served,
        write_image(tmp_path / "reference.nii.gz", truth, AFFINE),
        times=AnnotationTimes(strokes=True, good_enough=1.0, max_clicks=2),
    )
    assert (done.clicks, done.by_hand, done.saved_dice) == (1, False, 1.0)
    assert np.array_equal(saved(served, done.image), truth)


@pytest.mark.parametrize("strokes", [False, True])
def test_structures_that_the_model_lacks_are_left_to_the_annotators_hand(
    painted: Served, tmp_path: Path, strokes: bool
):
    truth = reference(tmp_path, {(1, 2, 3): 1, (4, 0, 6): 9, (5, 0, 6): 9})
    done = label(painted, truth, times=AnnotationTimes(strokes=strokes, good_enough=1.0, max_clicks=4))
    assert (done.clicks, done.by_hand, done.saved_dice) == (1, True, 1.0)
    assert np.array_equal(saved(painted, done.image), np.asarray(nibabel.load(truth).dataobj))


def test_without_a_model_all_is_done_by_hand(painted: Served, tmp_path: Path):
    done = label(painted, reference(tmp_path, {(1, 2, 3): 1}), model="none")
    assert (done.clicks, done.by_hand, done.seconds, done.version) == (0, True, 600, "")
    assert np.isnan(done.proposed_dice)


def test_clicks_that_miss_are_still_clicks_in_the_image(painted: Served, tmp_path: Path):
    truth = reference(tmp_path, {(12, 10, 6): 1})
    done = label(painted, truth, times=AnnotationTimes(good_enough=1.0, max_clicks=4, click_noise=5.0))
    assert 0 < done.clicks <= 4


@pytest.fixture
def pool(serve: Serve, tmp_path: Path) -> Served:
    """Six images, without labels, and a model that learns where bright begins."""
    served = serve(app=str(THRESHOLD), models=("bright",))
    for name in ("ct_a", "ct_b", "ct_ü"):
        served.store.remove_image(name)
    write_images(served.settings.studies, 6)
    served.store.refresh()
    write_images(tmp_path / "validation" / "images", 2)
    for folder, images in (
        (tmp_path / "references", served.settings.studies),
        (tmp_path / "validation" / "labels", tmp_path / "validation" / "images"),
    ):
        folder.mkdir()
        for number in range(len(list(images.glob("*.nii.gz")))):
            write_label(images, f"ct_{number}", folder / f"ct_{number}.nii.gz")
    return served


def test_a_run_labels_trains_and_tests_and_its_results_are_tables_and_a_picture(pool: Served, tmp_path: Path):
    told = CliRunner().invoke(
        rayapp,
        [
            "simulate",
            "random",
            *("--references", str(tmp_path / "references"), "--validation", str(tmp_path / "validation")),
            *("--out", str(tmp_path / "out"), "--model", "bright", "--budgets", "2,5", "--annotators", "2"),
            *("--iterations", "8", "--server", pool.url),
        ],
    )
    assert told.exit_code == 0, (told.output, told.exception)
    rounds = read_rounds(tmp_path / "out")
    assert [(one.labels, one.strategy, one.seed) for one in rounds] == [(2, "random", 0), (5, "random", 0)]
    assert 0 < rounds[0].minutes < rounds[1].minutes
    assert rounds[1].dice > 0.9
    assert pool.store.status()["completed"] == 5
    trained = [job for job in pool.jobs.jobs() if job.over]
    assert [(job.request["seed"], job.request["max_epochs"]) for job in trained] == [(0, 4), (0, 1)]
    assert "random" in told.output
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.format == "PNG"


def test_several_annotators_share_the_images_and_a_run_ends_when_none_is_left(pool: Served, tmp_path: Path):
    references = {file.name.removesuffix(".nii.gz"): file for file in (tmp_path / "references").iterdir()}
    simulation = Simulation(
        connect=lambda name: AsyncClient(pool.url, client_id=name),
        protocol=SimulationProtocol(
            model="bright", strategy="first", budgets=(100,), annotators=3, training={"max_epochs": 1}
        ),
        references=references,
        validation=[],
    )

    async def run() -> list[Annotation | Round]:
        return [done async for done in simulation.run()]

    done = asyncio.run(run())
    labels = [one for one in done if isinstance(one, Annotation)]
    assert sorted(one.image for one in labels) == sorted(references)
    assert len({one.annotator for one in labels}) > 1
    assert isinstance(done[-1], Round)
    assert done[-1].labels == 6


def test_a_training_that_does_not_end_well_ends_the_run(pool: Served, tmp_path: Path):
    slow = {"max_epochs": 100, "pause": 0.05}
    simulation = Simulation(
        connect=lambda name: AsyncClient(pool.url, client_id=name),
        protocol=SimulationProtocol(model="bright", strategy="first", budgets=(1,), training=slow),
        references={file.name.removesuffix(".nii.gz"): file for file in (tmp_path / "references").iterdir()},
        validation=[],
    )

    async def run() -> None:
        async for _ in simulation.run():
            pass

    def stop() -> None:
        pool.jobs.cancel(until(pool.jobs.jobs)[0].id)

    async def both() -> None:
        await asyncio.gather(run(), asyncio.to_thread(stop))

    with pytest.raises(RayappError, match="ended with STOPPED"):
        asyncio.run(both())


def test_dice_is_the_mean_over_structures_that_are_there():
    truth = np.array([1, 1, 2, 0])
    assert mean_dice(np.array([1, 0, 2, 0]), truth) == pytest.approx((2 / 3 + 1) / 2)
    assert mean_dice(np.zeros(4, int), np.zeros(4, int)) == 1.0
    assert mean_dice(np.array([0, 0, 0, 3]), np.zeros(4, int)) == 0.0
