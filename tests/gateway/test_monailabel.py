"""MONAI Label's own Python client, whose parsing of the raw answer is that of the Slicer module."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayapp.imaging.reader import read_segmentation
from rayapp.protocol import Role
from tests.gateway.conftest import Served, voxels, write_image, write_label


@pytest.fixture(scope="module")
def monailabel() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports cgi
        return pytest.importorskip("monailabel.client.client")


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_a_round_of_annotation(monailabel: Any, gateway: Served, tmp_path: Path):
    client = monailabel.MONAILabelClient(gateway.url, str(tmp_path), "c-1")
    assert not client.auth_enabled()
    assert "bright" in client.info()["models"]
    sample = client.next_sample("first", {})
    file, params = client.infer("bright", sample["id"], {"bright": [[1, 2, 3]], "result_extension": ".nrrd"})
    assert params["label_names"] == {"background": 0, "bright": 1}
    assert file.endswith(".nrrd")
    assert np.array_equal(read_segmentation(Path(file), max_bytes=1 << 20).array, voxels() > 100)
    label = write_label(tmp_path / "label.nii.gz")
    assert client.save_label(sample["id"], str(label), params={"label_info": []})["label"] == sample["id"]
    assert Path(client.download_label(sample["id"], "final")).read_bytes() == label.read_bytes()
    assert client.datastore()["objects"][sample["id"]]["labels"]["final"]["info"]["client_id"] == "c-1"


def test_uploads_and_sessions(monailabel: Any, gateway: Served, tmp_path: Path):
    client = monailabel.MONAILabelClient(gateway.url, str(tmp_path), "c-2")
    image = write_image(tmp_path / "mine.nii.gz")
    assert client.upload_image(str(image), "peer's (1)")["image"] == "peer's (1)"
    session = client.create_session(str(image))["session_id"]
    assert client.get_session(session)["name"] == session
    file, _ = client.infer("bright spots", "Volume: 1", {"result_extension": ".nii.gz"}, session_id=session)
    assert np.array_equal(read_segmentation(Path(file), max_bytes=1 << 20).array, voxels() > 100)
    client.remove_session(session)
    with pytest.raises(monailabel.MONAILabelClientException):
        client.get_session(session)


def test_nothing_trains(monailabel: Any, gateway: Served):
    client = monailabel.MONAILabelClient(gateway.url, client_id="c")
    assert client.train_status(check_if_running=True) is False
    assert client.train_stop() is None


def test_signing_in(monailabel: Any, keyed: Served, keys: dict[Role, str], tmp_path: Path):
    client = monailabel.MONAILabelClient(keyed.url, str(tmp_path), "c")
    assert client.auth_enabled()
    assert not client.auth_valid_token()
    client.update_auth(client.auth_token("the annotator", keys[Role.ANNOTATOR]))
    assert client.auth_valid_token()
    # The client goes on sending the length of an earlier body, also where there is none.
    client.next_sample("first", {"strategy": "x"})
    assert json.dumps(client.info())
    assert client.save_label("ct_a", str(write_label(tmp_path / "label.nii.gz")))["image"] == "ct_a"
    assert keyed.store.label("ct_a", "final").info["user"] == "the annotator"
