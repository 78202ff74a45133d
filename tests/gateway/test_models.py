"""`/model/`: weights over the wire."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import pytest
import requests
import torch
from safetensors.torch import load, save

from rayapp.protocol import Role
from tests.gateway.conftest import Serve, Served


@pytest.fixture
def own(serve: Serve) -> Served:
    """A gateway whose models a test may change."""
    return serve()


def upload(gateway: Served, weights: bytes, model: str = "bright", **given) -> requests.Response:
    return gateway.put(f"/model/{model}", files={"file": ("weights.bin", weights)}, **given)


def pickled(value: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def test_weights_come_whole_with_their_checksum(gateway: Served):
    answer = gateway.get("/model/bright")
    assert answer.headers["Content-Disposition"] == 'attachment; filename="bright.safetensors"'
    assert float(load(answer.content)["at"]) == 100
    info = gateway.get("/model/info/bright").json()
    assert info["checksum"] == "SHA256:" + hashlib.sha256(answer.content).hexdigest()
    assert isinstance(info["modified_time"], int)
    assert gateway.get("/model/info/bright+spots").status_code == 200


@pytest.mark.parametrize("name", ["nothing", "%2e%2e%2fx", "a%2Fb"])
def test_an_unknown_model_has_no_weights(gateway: Served, name: str):
    for method in ("GET", "PUT", "DELETE"):
        files = {"file": b"x"} if method == "PUT" else None
        assert gateway.send(method, f"/model/{name}", files=files).status_code in (400, 404, 405)
    assert gateway.get("/model/info/nothing").status_code == 404


@pytest.mark.parametrize("packed", [save, pickled, lambda tensors: pickled({"state_dict": tensors})])
def test_uploaded_weights_are_published_as_the_next_version(own: Served, packed):
    answer = upload(own, packed({"at": torch.tensor([50.0])}))
    assert answer.status_code == 200
    assert answer.json() == own.get("/model/info/bright").json()
    assert float(load(own.get("/model/bright").content)["at"]) == 50
    assert own.get("/info/").json()["models"]["bright"]["version"] == "v2"
    assert own.staged() == []


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"x" * 100,
        save({"at": torch.tensor([1.0])})[:-2],
        save({"other": torch.tensor([1.0])}),
        pickled(Evil()),
        pickled([1]),
        pickled({"at": 1}),
        pickle.dumps(Evil()),
        b"PK\x05\x06" + bytes(18),
    ],
    ids=["empty", "rubbish", "cut", "other", "code", "list", "number", "pickle", "zip"],
)
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_serve_on(
    gateway: Served, weights: bytes, capsys: pytest.CaptureFixture[str]
):
    before = gateway.get("/model/info/bright").json()
    answer = upload(gateway, weights)
    assert answer.status_code == 422
    assert str(gateway.settings.workspace) not in answer.text
    assert gateway.get("/model/info/bright").json() == before
    assert gateway.infer("image=ct_a&output=json").status_code == 200
    assert gateway.staged() == []
    assert "code ran" not in capsys.readouterr().out


def test_a_retired_model_no_longer_serves(own: Served):
    assert own.send("DELETE", "/model/bright").json() == {}
    assert own.send("DELETE", "/model/bright").status_code == 404
    assert list(own.get("/info/").json()["models"]) == ["bright spots"]


def test_a_torch_file_is_taken_from_an_administrator_only(keyed: Served, keys: dict[Role, str]):
    torch_file, plain = pickled({"at": torch.tensor([1.0])}), save({"at": torch.tensor([1.0])})
    key = {"headers": {"Authorization": f"Bearer {keys[Role.ANNOTATOR]}"}}
    assert upload(keyed, torch_file, **key).status_code == 403
    assert upload(keyed, plain, **key).status_code == 200
    assert keyed.staged() == []


def test_a_model_upload_needs_a_file(gateway: Served, tmp_path: Path):
    assert gateway.put("/model/bright").status_code == 422
