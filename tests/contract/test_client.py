"""The same story through our own clients, against a running server."""

from __future__ import annotations

import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from rayapp import errors
from rayapp.client import AsyncClient, Client, JobKind
from rayapp.client.results import InferResult
from rayapp.protocol import Output
from tests.conftest import SHAPE, Running
from tests.contract.test_monailabel_client import labelled, same_grid
from tests.waiting import until


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    with Client(server.url, client_id="ours") as client:
        yield client


@pytest.fixture
async def calls(server: Running) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.url, client_id="ours too") as client:
        yield client


def voxels(file: Path) -> np.ndarray:
    """A file's voxels as i, j, k, read by SimpleITK."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file))).transpose(2, 1, 0)


async def test_an_annotator_takes_the_next_image_clicks_and_saves(calls: AsyncClient, server: Running, tmp_path: Path):
    info = await calls.info()
    sample = await calls.next_sample("first")
    assert sample is not None
    image = await calls.download_image(sample["id"], tmp_path)
    assert image.name == sample["name"]
    result = await calls.infer(
        "deepedit",
        sample["id"],
        params={"liver": [[30, 25, 20]], "result_extension": ".nii.gz"},
        to=tmp_path / "m.nii.gz",
    )
    assert result.params["label_names"] == info["models"]["deepedit"]["labels"]
    assert same_grid(tmp_path / "m.nii.gz", image)
    saved = await calls.save_label(sample["id"], tmp_path / "m.nii.gz", params={"model": "deepedit"})
    assert saved["label"] == sample["id"]
    back = await calls.download_label(sample["id"], tmp_path / "back.nii.gz")
    assert back.read_bytes() == (tmp_path / "m.nii.gz").read_bytes()
    recorded = await calls.label_info(sample["id"])
    assert (recorded["model"], recorded["client_id"]) == ("deepedit", "ours too")
    assert (await calls.datastore())["completed"] >= 1
    follows = await calls.next_sample("first")
    assert follows is None or follows["id"] != sample["id"]


def test_an_interaction_goes_on_elsewhere_and_answers_what_an_inference_with_all_its_clicks_does(
    client: Client, server: Running
):
    work = client.open_interaction("deepedit", "torso_0")
    work.prompt({"liver": [[30, 25, 20]]})
    first = work.labels
    work.prompt({"spleen": [[10, 25, 20]]})
    clicks = {"liver": [[30, 25, 20]], "spleen": [[10, 25, 20]]}
    assert np.array_equal(work.labels, client.infer_box("deepedit", "torso_0", params=clicks).labels())
    with Client(server.url) as elsewhere:
        again = elsewhere.interaction(work.id)
        assert np.array_equal(again.undo(), first)
        assert np.array_equal(again.redo(), work.labels)
    with pytest.raises(errors.Conflict):
        work.redo()


DRAWN = {
    "strokes": {"marks": [((20, 20, 20), 2), ((40, 45, 20), 1)]},
    "a closed curve": {"curves": [[[20, 20, 18], [20, 30, 18], [30, 30, 18], [30, 20, 18]]]},
    "extreme points": {
        "extremes": {"liver": [[15, 22, 20], [40, 24, 20], [25, 12, 20], [26, 35, 20], [27, 22, 12], [28, 22, 30]]}
    },
    "a box": {"roi": [10, 50, 8, 44, 6, 34]},
}


@pytest.mark.parametrize("model", ["deepedit", "Histogram+GraphCut"])
@pytest.mark.parametrize("kind", DRAWN)
def test_a_drawn_prompt_of_any_kind_is_answered_undone_and_replayed(client: Client, model: str, kind: str):
    said = dict(DRAWN[kind])
    if "marks" in said:
        marks = np.zeros(SHAPE, np.uint8, order="F")
        for point, mark in said["marks"]:
            marks[point] = mark
        said["marks"] = marks
    work = client.open_interaction(model, "torso_2")
    before = work.prompt({"foreground": [[25, 25, 20]]}, label="liver")
    after = work.prompt(label="liver", **said)
    if "marks" in said:
        assert after[20, 20, 20] == 1
        assert after[40, 45, 20] == 0
    if "curves" in said:
        assert (after[20:31, 20:31, 18] == 1).all()
    if "extremes" in said:
        assert all(after[tuple(point)] == 1 for point in said["extremes"]["liver"])
        assert np.argwhere(after == 1).min(axis=0).tolist() == [15, 12, 12]
    if "roi" in said:
        assert not after[:10].any()
        assert after.any()
    assert np.array_equal(work.undo(), before)
    assert np.array_equal(work.redo(), after)
    assert np.array_equal(work.mask(step=work.state()["events"][1]["step"]), after)


def test_a_prompts_masks_are_streamed_and_the_last_is_what_stays(client: Client):
    work = client.open_interaction("deepedit", "torso_2")
    masks = list(work.stream({"liver": [[25, 25, 20]]}))
    assert masks
    assert np.array_equal(masks[-1], work.mask())
    assert np.array_equal(masks[-1], work.labels)
    with pytest.raises(errors.BadRequest, match="outside"):
        list(work.stream({"liver": [[1000, 25, 20]]}))


def test_an_opened_images_first_mask_is_there_without_waiting_for_the_network(client: Client):
    client.open_interaction("segmentation", "torso_3")

    def first_mask() -> InferResult | None:
        found = client.infer_box("segmentation", "torso_3")
        return None if found.params["latencies"]["infer"] else found

    found = until(first_mask, every=0.5)
    assert found.labels().any()
    anew = client.infer("segmentation", "torso_3", params={"roi": [0, 1000, 0, 1000, 0, 1000]})
    assert anew.params["latencies"]["infer"] > 0
    assert np.array_equal(anew.labels(), found.labels())


def test_box_nrrd_and_nifti_hold_the_same_mask(client: Client, tmp_path: Path):
    box = client.infer_box("segmentation", "torso_0")
    nrrd = client.infer("segmentation", "torso_0", params={"result_extension": ".nrrd"})
    nifti = client.infer("segmentation", "torso_0", params={"result_extension": ".nii.gz"}, to=tmp_path)
    assert nifti.path is not None
    assert nifti.path.name.endswith(".nii.gz")
    assert box.labels().any()
    assert np.array_equal(box.labels(), nrrd.labels())
    assert np.array_equal(box.labels(), nifti.labels())
    assert np.array_equal(box.labels(), voxels(nifti.path))
    assert box.params["label_names"] == nrrd.params["label_names"]


def test_the_mask_alone_and_the_json_alone_can_be_had(client: Client):
    alone = client.infer("segmentation", "torso_0", output=Output.IMAGE)
    assert alone.params == {}
    assert alone.labels().any()
    told = client.infer("segmentation", "torso_0", output=Output.JSON)
    assert told.params["label_names"]
    assert told.body is None


def test_a_file_and_a_session_give_what_the_stored_image_gives(client: Client, server: Running, tmp_path: Path):
    source = server.studies / "torso_1.nii.gz"
    stored = client.infer_box("segmentation", "torso_1").labels()
    assert np.array_equal(client.infer("segmentation", file=source).labels(), stored)
    session = client.create_session(source, expiry=600)["session_id"]
    assert np.array_equal(client.infer_box("segmentation", session=session).labels(), stored)
    assert client.download_session(session, tmp_path / "it.nii.gz").read_bytes() == source.read_bytes()
    assert client.session(session, refresh=True)["expiry"] == 600
    client.delete_session(session)
    with pytest.raises(errors.NotFound):
        client.session(session)


def test_an_image_is_uploaded_described_and_deleted(client: Client, server: Running, tmp_path: Path):
    file = tmp_path / "new torso.nii.gz"
    file.write_bytes((server.studies / "torso_1.nii.gz").read_bytes())
    image = client.upload_image(file, params={"ward": "7"})
    assert image == "new torso"
    client.update_image_info(image, {"level": "hard"})
    info = client.image_info(image)
    assert (info["ward"], info["level"]) == ("7", "hard")
    assert client.has_image(image)
    assert client.download_image(image, tmp_path / "back").read_bytes() == file.read_bytes()
    with pytest.raises(errors.Conflict):
        client.upload_image(file)
    client.delete_image(image)
    assert not client.has_image(image)


def test_labels_have_tags_infos_and_an_end(client: Client, server: Running, tmp_path: Path):
    label = tmp_path / "label.nrrd"
    expected = labelled(server.studies / "torso_1.nii.gz", label)
    client.save_label("torso_1", label, tag="version_1")
    client.update_label_info("torso_1", {"segmentationMeta": {"status": "approved"}}, tag="version_1")
    assert client.label_info("torso_1", "version_1")["segmentationMeta"] == {"status": "approved"}
    back = client.download_label("torso_1", tmp_path / "back.nrrd", tag="version_1")
    assert np.array_equal(voxels(back), expected.transpose(2, 1, 0))
    assert client.has_label("torso_1", "version_1")
    client.delete_label("torso_1", "version_1")
    assert not client.has_label("torso_1", "version_1")


def test_a_label_on_another_grid_is_refused_and_stored_nowhere(client: Client, server: Running, tmp_path: Path):
    label = tmp_path / "label.nii.gz"
    labelled(server.studies / "torso_2.nii.gz", label)
    with pytest.raises(errors.Unreadable):
        client.save_label("torso_1", label, tag="other")
    label.write_bytes(label.read_bytes()[: label.stat().st_size // 2])
    with pytest.raises(errors.Unreadable):
        client.save_label("torso_2", label, tag="other")
    assert not client.has_label("torso_1", "other")
    assert not client.has_label("torso_2", "other")


def test_finished_pairs_come_as_a_zip(client: Client, server: Running, tmp_path: Path):
    label = tmp_path / "label.nii.gz"
    labelled(server.studies / "torso_3.nii.gz", label)
    client.save_label("torso_3", label)
    with zipfile.ZipFile(client.dataset(tmp_path / "dataset.zip")) as archive:
        assert archive.testzip() is None
        assert {"image/torso_3.nii.gz", "label/torso_3.nii.gz", "metadata.json"} <= set(archive.namelist())
    assert any(pair["label"].endswith("torso_3.nii.gz") for pair in client.datalist())
    assert "torso_3" in client.document()["objects"]


def test_weights_come_whole_and_damaged_ones_are_refused(client: Client, tmp_path: Path):
    weights = client.download_model("segmentation", tmp_path)
    assert client.model_info("segmentation")["checksum"].startswith("SHA256:")
    (tmp_path / "damaged.safetensors").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(errors.Unreadable):
        client.upload_model("segmentation", tmp_path / "damaged.safetensors")
    assert "segmentation" in client.info()["models"]


def test_nothing_runs_in_the_background(client: Client):
    for kind in JobKind:
        assert client.jobs(kind) == []
        assert client.running(kind) is False
        assert client.stop_job(kind) is None


def test_the_log_can_be_read(client: Client):
    assert isinstance(client.logs(lines=5), str)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"liver": [[1000, 2, 3]]}, "1000"),
        ({"liver": [[1, 2]]}, "three"),
        ({"liver": [["a", 2, 3]]}, "a"),
        ({"liver": 7}, "liver"),
    ],
)
def test_a_click_that_cannot_be_is_told(client: Client, params: dict, said: str):
    with pytest.raises(errors.BadRequest, match=said):
        client.infer("deepedit", "torso_0", params=params)


def test_unknown_models_and_strategies_are_answered_with_the_known_ones(client: Client):
    with pytest.raises(errors.NotFound, match="segmentation"):
        client.infer("nothing", "torso_0")
    with pytest.raises(errors.NotFound, match="random"):
        client.next_sample("nothing")
