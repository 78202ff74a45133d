"""The Python client of MONAI Label 0.8.5, as it comes from its wheel, against a running server.

3D Slicer's module carries the same client, so this is also what Slicer sends.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from tests.conftest import Running

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of the module cgi, which it imports
    pytest.importorskip("cgi", reason="MONAI Label's client needs the module cgi, gone since Python 3.13")
    from monailabel.client.client import MONAILabelClient, MONAILabelClientException, MONAILabelUtils


@pytest.fixture
def client(server: Running, tmp_path: Path) -> Any:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="contract")


def labelled(image: Path, to: Path) -> np.ndarray:
    """Write a label map on the image's grid, different in every corner; its voxels, k, j, i."""
    grid = sitk.ReadImage(str(image))
    voxels = np.zeros(sitk.GetArrayFromImage(grid).shape, np.uint8)
    voxels[2:5, 3:9, 4:14] = 1
    voxels[-4:-1, 10:13, -9:] = 2
    label = sitk.GetImageFromArray(voxels)
    label.CopyInformation(grid)
    sitk.WriteImage(label, str(to), useCompression=True)
    return voxels


def same_grid(first: Path | str, second: Path | str) -> bool:
    """True when two files lie on one voxel grid, as SimpleITK reads them."""
    one, other = sitk.ReadImage(str(first)), sitk.ReadImage(str(second))
    return one.GetSize() == other.GetSize() and all(
        np.allclose(a, b, atol=1e-4)
        for a, b in (
            (one.GetSpacing(), other.GetSpacing()),
            (one.GetOrigin(), other.GetOrigin()),
            (one.GetDirection(), other.GetDirection()),
        )
    )


def test_info_has_what_the_clients_read(client: Any):
    info = client.info()
    assert "config" not in info
    assert isinstance(info["labels"], list)
    assert info["labels"]
    assert {"deepedit", "segmentation"} <= set(info["models"])
    for model in info["models"].values():
        assert model["type"] in ("segmentation", "deepedit", "deepgrow", "scribbles")
        assert model["labels"] or model["type"] in ("scribbles", "deepgrow"), "or it segments whatever is pointed at"
        assert model["labels"] is not None
        assert model["description"]
    assert {"first", "random"} <= set(info["strategies"])
    assert info["datastore"]["total"] >= 4


def test_the_next_sample_can_be_opened(client: Any, server: Running):
    client.upload_image(str(server.studies / "torso_0.nii.gz"), "to_label")  # others may hold all that there were
    sample = client.next_sample("random", {"label_tag": "final"})
    assert Path(sample["path"]).is_file()
    assert sample["name"] == f"{sample['id']}.nii.gz"
    recorded = client.datastore()["objects"][sample["id"]]["image"]["info"]
    assert recorded["strategy"]["random"]["client_id"] == "contract"


@pytest.mark.parametrize("image", ["torso_0", "torso_1", "torso_2"])
def test_an_inference_lies_on_the_images_grid(client: Any, server: Running, image: str):
    file, params = client.infer("segmentation", image, {"result_extension": ".nrrd", "result_dtype": "uint8"})
    assert file.endswith(".nrrd")
    assert same_grid(file, server.studies / f"{image}.nii.gz")
    mask = sitk.GetArrayFromImage(sitk.ReadImage(file))
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, *params["label_names"].values()}
    assert params["latencies"]["total"] > 0


def test_clicks_reach_the_model_as_slicer_sends_them(client: Any, server: Running):
    labels = client.info()["labels"]
    clicks = {name: [] for name in labels}
    clicks["liver"] = [[30, 25, 20]]
    slicer = {**clicks, "label": "liver", "roi": [], "reset_state": True, "result_extension": ".nrrd"}
    file, params = client.infer("deepedit", "torso_0", {**slicer, "result_dtype": "uint8"})
    assert same_grid(file, server.studies / "torso_0.nii.gz")
    assert params["label_names"]["liver"] == 1


def defaults(model: dict[str, Any]) -> dict[str, Any]:
    """A model's options as Slicer sends them: the first of each list."""
    return {key: value[0] if isinstance(value, list) else value for key, value in model["config"].items()}


def test_scribbles_go_as_a_label_map_and_come_back_as_a_mask(client: Any, server: Running, tmp_path: Path):
    image, file = server.studies / "torso_0.nii.gz", tmp_path / "scribbles.nii.gz"
    drawn = labelled(image, file)  # 1 in one corner, 2 in another
    slicer = {
        "roi": [],
        "label_info": [{"name": "foreground_scribbles", "id": 1}, {"name": "background_scribbles", "id": 2}],
        "selected_label_name": "lesion",
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
    }
    online = {name: model for name, model in client.info()["models"].items() if model["type"] == "scribbles"}
    online = {name: model for name, model in online.items() if not model["labels"]}
    assert len(online) == 4
    for name, model in online.items():
        made, params = client.infer(name, "torso_0", {**slicer, **defaults(model)}, str(file))
        assert same_grid(made, image)
        mask = sitk.GetArrayFromImage(sitk.ReadImage(made))
        assert mask.dtype == np.uint8
        assert (mask[drawn == 1] == 1).all()
        assert (mask[drawn == 2] == 0).all()
        assert params["label_names"] == {"lesion": 1}


def test_scribbles_refine_what_a_network_proposes(client: Any, server: Running, tmp_path: Path):
    image, file = server.studies / "torso_0.nii.gz", tmp_path / "scribbles.nii.gz"
    drawn = labelled(image, file)
    slicer = {
        "label_info": [{"name": "background_scribbles", "id": 1}, {"name": "foreground_scribbles", "id": 2}],
        "selected_label_name": "liver",
        "result_extension": ".nrrd",
    }
    made, _ = client.infer("Segmentation+GraphCut", "torso_0", slicer, str(file))
    mask = sitk.GetArrayFromImage(sitk.ReadImage(made))
    assert same_grid(made, image)
    assert (mask[drawn == 2] == 1).all()
    assert (mask[drawn == 1] == 0).all()
    assert mask.sum() > 2 * (drawn == 2).sum()


def test_an_image_that_was_uploaded_comes_back_whole(client: Any, server: Running, tmp_path: Path):
    source = server.studies / "torso_1.nii.gz"
    assert client.upload_image(str(source), "uploaded", {"note": "here"})["image"] == "uploaded"
    status, body, _, _ = MONAILabelUtils.http_method("GET", server.url, "/datastore/image?image=uploaded")
    assert (status, body) == (200, source.read_bytes())
    assert client.datastore()["objects"]["uploaded"]["image"]["info"]["note"] == "here"


def test_a_session_is_made_asked_used_and_ended(client: Any, server: Running):
    source = server.studies / "torso_2.nii.gz"
    session = client.create_session(str(source))["session_id"]
    assert client.get_session(session)["name"] == session
    file, _ = client.infer(
        "segmentation", "no image of the datastore", {"result_extension": ".nrrd"}, session_id=session
    )
    assert same_grid(file, source)
    client.remove_session(session)
    with pytest.raises(MONAILabelClientException):
        client.get_session(session)


def test_a_saved_label_comes_back_voxel_for_voxel(client: Any, server: Running, tmp_path: Path):
    image, label = server.studies / "torso_3.nii.gz", tmp_path / "label.nii.gz"
    voxels = labelled(image, label)
    slicer = {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}], "model": "deepedit"}
    saved = client.save_label("torso_3", str(label), params=slicer)
    assert (saved["image"], saved["label"]) == ("torso_3", "torso_3")
    back = client.download_label("torso_3", "final")
    assert back.endswith(".nii.gz")
    assert Path(back).read_bytes() == label.read_bytes()
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(back)), voxels)
    info = client.datastore()["objects"]["torso_3"]["labels"]["final"]["info"]
    assert info["label_info"] == slicer["label_info"]
    assert (info["client_id"], info["name"]) == ("contract", "torso_3.nii.gz")
    assert (server.studies / "labels" / "final" / "torso_3.nii.gz").read_bytes() == label.read_bytes()


def test_a_label_under_a_tag_leaves_final_alone(client: Any, server: Running, tmp_path: Path):
    label = tmp_path / "label.nii.gz"
    labelled(server.studies / "torso_2.nii.gz", label)
    client.save_label("torso_2", str(label), tag="version_1", params={"segmentationMeta": {"status": "flagged"}})
    tags = client.datastore()["objects"]["torso_2"]["labels"]
    assert "final" not in tags
    assert tags["version_1"]["info"]["segmentationMeta"] == {"status": "flagged"}


def test_nothing_trains_and_that_is_told(client: Any):
    assert client.train_status(check_if_running=True) is False
    assert client.train_stop() is None
    with pytest.raises(MONAILabelClientException):
        client.train_status()


def test_authentication_is_off(client: Any):
    assert client.auth_enabled() is False


def test_the_log_is_served(server: Running):
    status, *_ = MONAILabelUtils.http_method("GET", server.url, "/logs/?lines=10&html=false&text=true")
    assert status == 200
    status, _, _, headers = MONAILabelUtils.http_method("GET", server.url, "/logs/")
    assert status == 200
    assert "html" in headers["content-type"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/infer/none?image=torso_0", None, 404),
        ("POST", "/infer/segmentation?image=none", None, 404),
        ("POST", "/infer/segmentation", None, 400),
        ("POST", "/activelearning/none", {"client_id": "x"}, 404),
        ("GET", "/datastore/image?image=none", None, 404),
        ("GET", "/datastore/image?image=..%2F..%2Fetc%2Fpasswd", None, 400),
        ("GET", "/datastore/label?label=torso_0&tag=none", None, 404),
        ("GET", "/datastore/?output=none", None, 422),
        ("GET", "/session/none", None, 404),
        ("GET", "/model/none", None, 404),
        ("GET", "/nothing", None, 404),
    ],
)
def test_what_is_wrong_is_said_in_json(server: Running, method: str, path: str, body: Any, status: int):
    answered, text, _, _ = MONAILabelUtils.http_method(method, server.url, path, body)
    assert answered == status, text
    assert json.loads(text)["detail"]
