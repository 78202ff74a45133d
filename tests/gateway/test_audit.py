"""Who did what is recorded, with the image's digest, the revision and the outcome."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayapp.audit_log import AuditLog
from rayapp.protocol import Role
from tests.gateway.conftest import Served, write_label
from tests.waiting import until


def records(served: Served, action: str) -> list[dict[str, Any]]:
    return [each for each in AuditLog.of(served.settings.workspace).records() if each["action"] == action]


@pytest.fixture(autouse=True)
def as_annotator(keyed: Served, keys: dict[Role, str]):
    keyed.token = keys[Role.ANNOTATOR]
    yield
    keyed.token = None


def test_a_save_is_recorded_before_it_is_answered(keyed: Served, tmp_path: Path):
    log = AuditLog.of(keyed.settings.workspace)
    for number in (1, 2):
        answer = keyed.save("ct_a", write_label(tmp_path / "label.nii.gz"))
        record = records(keyed, "PUT /datastore/label")[-1]
        assert (record["user"], record["role"], record["outcome"]) == ("the annotator", "annotator", 200)
        assert (record["image"], record["revision"], record["from"]) == (log.pseudonym("ct_a"), number, "127.0.0.1")
        assert record["request"] == answer.headers["X-Request-ID"]
    assert list(log.problems()) == []


def test_a_request_keeps_the_id_that_it_came_with_unless_it_is_none(keyed: Served):
    for given, kept in (("trace-1.2:3", True), ("two words", False), ("x" * 65, False)):
        answer = keyed.get("/info/", headers={"X-Request-ID": given})
        assert (answer.headers["X-Request-ID"] == given) is kept


def test_clicks_name_their_image(keyed: Served):
    opened = keyed.post("/interactions", json={"image": "ct_b", "model": "bright"}).json()
    keyed.post(f"/interactions/{opened['id']}/prompts", json={"clicks": {"bright": [[1, 2, 3]]}})
    until(lambda: records(keyed, "POST /interactions/{interaction_id}/prompts"))
    (record,) = records(keyed, "POST /interactions/{interaction_id}/prompts")
    assert record["image"] == AuditLog.of(keyed.settings.workspace).pseudonym("ct_b")


def test_the_same_reading_is_recorded_once_and_that_of_another_image_too(keyed: Served):
    for image in ("ct_a", "ct_a", "ct_b", "ct_a"):
        assert keyed.get(f"/datastore/image?image={image}").status_code == 200
    until(lambda: len(records(keyed, "GET /datastore/image")) >= 2)
    assert len(records(keyed, "GET /datastore/image")) == 2


def test_refusals_are_recorded(keyed: Served):
    assert keyed.send("DELETE", "/datastore/image?id=ct_a").status_code == 403
    keyed.token = "wrong"
    assert keyed.get("/datastore/dataset").status_code == 401
    until(lambda: records(keyed, "GET /datastore/dataset"))
    (record,) = records(keyed, "GET /datastore/dataset")
    assert ("user" not in record, record["outcome"]) == (True, 401)


def test_a_disk_that_takes_no_record_stops_nobody(keyed: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def refused(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AuditLog, "append", refused)
    assert keyed.save("ct_a", write_label(tmp_path / "label.nii.gz")).status_code == 200


def test_the_replica_is_told_the_requests_id(keyed: Served):
    keyed.infer("image=ct_a&output=json", headers={"X-Request-ID": "click-1"})
    assert keyed.network.calls[-1].request == "click-1"
