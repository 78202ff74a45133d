"""Keys and roles: who may call what, on the wire."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import requests
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from deployments.access import Needs
from rayapp.protocol import Role
from tests.gateway.conftest import Served, write_image, write_label

OPEN = {
    "/healthz",
    "/readyz",
    "/",
    "/docs",
    "/openapi.json",
    "/favicon.ico",
    "/auth/",
    "/auth/token",
    "/ohif",
    "/ohif/",
    "/ohif/{path:path}",
}
USER, ANNOTATOR, ADMIN = Role.USER, Role.ANNOTATOR, Role.ADMIN

TABLE = {
    ("POST", "/reload"): ADMIN,
    ("GET", "/info/"): USER,
    ("GET", "/metrics"): USER,
    ("POST", "/infer/{model}"): USER,
    ("POST", "/infer/wsi/{model}"): USER,
    ("POST", "/infer/wsi_v2/{model}"): USER,
    ("GET", "/batch/infer"): USER,
    ("POST", "/batch/infer/{model}"): ADMIN,
    ("DELETE", "/batch/infer"): ADMIN,
    ("GET", "/train/"): USER,
    ("POST", "/train/"): ADMIN,
    ("POST", "/train/{model}"): ADMIN,
    ("DELETE", "/train/"): ADMIN,
    ("GET", "/scoring/"): USER,
    ("DELETE", "/scoring/"): ANNOTATOR,
    ("POST", "/scoring/"): ANNOTATOR,
    ("POST", "/scoring/{method}"): ANNOTATOR,
    ("GET", "/scoring/{method}/uncertainty"): USER,
    ("GET", "/scoring/{method}/slices"): USER,
    ("POST", "/activelearning/{strategy}"): USER,
    ("GET", "/datastore/"): USER,
    ("PUT", "/datastore/"): ANNOTATOR,
    ("DELETE", "/datastore/"): ADMIN,
    ("PUT", "/datastore/image"): ANNOTATOR,
    ("DELETE", "/datastore/image"): ADMIN,
    ("HEAD", "/datastore/image"): USER,
    ("GET", "/datastore/image"): USER,
    ("GET", "/datastore/image/info"): USER,
    ("PUT", "/datastore/image/info"): ANNOTATOR,
    ("PUT", "/datastore/label"): ANNOTATOR,
    ("DELETE", "/datastore/label"): ADMIN,
    ("HEAD", "/datastore/label"): USER,
    ("GET", "/datastore/label"): USER,
    ("GET", "/datastore/label/info"): USER,
    ("PUT", "/datastore/label/info"): ANNOTATOR,
    ("GET", "/datastore/label/revisions"): USER,
    ("POST", "/datastore/label/restore"): ANNOTATOR,
    ("PUT", "/datastore/updatelabelinfo"): ANNOTATOR,
    ("GET", "/datastore/dataset"): ANNOTATOR,
    ("GET", "/model/{model}"): ADMIN,
    ("GET", "/model/info/{model}"): ADMIN,
    ("PUT", "/model/{model}"): ANNOTATOR,
    ("DELETE", "/model/{model}"): ANNOTATOR,
    ("PUT", "/session/"): USER,
    ("GET", "/session/{session_id}"): USER,
    ("DELETE", "/session/{session_id}"): USER,
    ("GET", "/interactions"): ANNOTATOR,
    ("POST", "/interactions"): ANNOTATOR,
    ("GET", "/interactions/{interaction_id}"): ANNOTATOR,
    ("GET", "/interactions/{interaction_id}/mask"): ANNOTATOR,
    ("POST", "/interactions/{interaction_id}/prompts"): ANNOTATOR,
    ("POST", "/interactions/{interaction_id}/undo"): ANNOTATOR,
    ("POST", "/interactions/{interaction_id}/redo"): ANNOTATOR,
    ("POST", "/interactions/{interaction_id}/stream"): ANNOTATOR,
    ("POST", "/interactions/{interaction_id}/undo/stream"): ANNOTATOR,
    ("POST", "/interactions/{interaction_id}/redo/stream"): ANNOTATOR,
    ("GET", "/jobs"): USER,
    ("GET", "/jobs/{job_id}"): USER,
    ("DELETE", "/jobs/{job_id}"): ADMIN,
    ("GET", "/jobs/{job_id}/events"): USER,
    ("GET", "/jobs/{job_id}/files/{name}"): USER,
    ("GET", "/models"): ADMIN,
    ("POST", "/models/{model}/promote"): ADMIN,
    ("POST", "/models/{model}/rollback"): ADMIN,
    ("GET", "/logs/"): ADMIN,
    ("GET", "/logs/gpu"): ADMIN,
    ("GET", "/dicom-web/studies"): USER,
    ("GET", "/dicom-web/studies/{study}/metadata"): USER,
    ("GET", "/dicom-web/studies/{study}/series"): USER,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances"): USER,
    ("GET", "/dicom-web/studies/{study}/series/{series}/metadata"): USER,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/metadata"): USER,
    ("GET", "/dicom-web/studies/{study}/series/{series}/instances/{instance}/frames/{number}"): USER,
    ("GET", "/viewer/image"): USER,
    ("GET", "/viewer/label"): USER,
    ("GET", "/viewer/draft"): ANNOTATOR,
    ("POST", "/viewer/draft"): ANNOTATOR,
    ("GET", "/proxy/dicom/{path:path}"): USER,
    ("POST", "/proxy/dicom/{path:path}"): ANNOTATOR,
    ("GET", "/auth/token/valid"): USER,
}


def roles_of(dependant: Dependant) -> list[Role]:
    own = [dependant.call.role] if isinstance(dependant.call, Needs) else []
    return own + [role for below in dependant.dependencies for role in roles_of(below)]


def test_every_route_asks_one_role_as_the_contract_says_or_is_open(keyed: Served):
    declared = {}
    for route in keyed.app.routes:
        roles = roles_of(route.dependant) if isinstance(route, APIRoute) else []
        if route.path in OPEN:
            assert roles == [], route.path
            continue
        assert len(roles) == 1, f"{route.path} asks no role"
        declared |= dict.fromkeys(((method, route.path) for method in route.methods), roles[0])
    assert declared == TABLE


@pytest.mark.parametrize(("method", "path", "role"), [(*route, role) for route, role in TABLE.items()])
def test_the_role_below_is_refused_and_told_which_is_needed(
    keyed: Served, keys: dict[Role, str], method: str, path: str, role: Role
):
    url = keyed.url + path.replace("{path:path}", "x").replace("{", "").replace("}", "")
    answer = requests.request(method, url, timeout=20)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    below = list(Role)[list(Role).index(role) - 1]
    if role is not USER:
        answer = requests.request(method, url, headers={"Authorization": f"Bearer {keys[below]}"}, timeout=20)
        assert answer.status_code == 403
        if method != "HEAD":
            assert f'Role "{role}" is required' in answer.json()["detail"]
    if path not in ("/reload",):
        answer = requests.request(method, url, headers={"Authorization": f"Bearer {keys[role]}"}, timeout=20)
        assert answer.status_code not in (401, 403, 500)


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Bearer wrong", "Basic YTpi", "bearer é".encode(), "x" * 5000])
def test_nothing_but_a_key_lets_anybody_in(keyed: Served, header: str | bytes):
    assert requests.get(keyed.url + "/info/", headers={"Authorization": header}, timeout=20).status_code == 401


def test_one_signs_in_with_name_and_key_as_the_clients_do(keyed: Served, keys: dict[Role, str]):
    assert keyed.get("/auth/").json() == {"enabled": True, "client_id": "rayapp", "realm": "rayapp"}
    form = {"username": "the reviewer", "password": keys[Role.REVIEWER], "grant_type": "password"}
    token = keyed.post("/auth/token", data=form).json()
    assert token == {"access_token": keys[Role.REVIEWER], "token_type": "bearer"}
    who = keyed.get("/auth/token/valid", headers={"Authorization": f"bearer {token['access_token']}"})
    assert who.json() == {
        "username": "the reviewer",
        "email": "",
        "name": "the reviewer",
        "roles": ["user", "annotator", "reviewer"],
    }
    for wrong in ({**form, "username": "the admin"}, {**form, "password": "x"}, {}):
        assert keyed.post("/auth/token", data=wrong).status_code == 401
    assert keyed.get("/auth/token/valid").status_code == 401


def test_a_revoked_key_ends_at_the_next_request(keyed: Served):
    key = {"Authorization": f"Bearer {keyed.users.add('guest', USER)}"}
    assert keyed.get("/info/", headers=key).status_code == 200
    keyed.users.revoke("guest")
    assert keyed.get("/info/", headers=key).status_code == 401


def test_the_users_name_is_kept_with_what_they_did(keyed: Served, keys: dict[Role, str], tmp_path: Path):
    keyed.token = keys[ANNOTATOR]
    try:
        with write_image(tmp_path / "mine.nii.gz").open("rb") as body:
            assert keyed.put("/datastore/", files={"file": body}, data={"params": '{"user": "x"}'}).status_code == 200
        keyed.save("mine", write_label(tmp_path / "label.nii.gz"), user="x")
        keyed.infer("image=mine&output=json", {"bright": [[1, 1, 1]], "client_id": "c"})
    finally:
        keyed.token = None
    assert keyed.store.image("mine").info["user"] == "the annotator"
    assert keyed.store.label("mine", "final").info["user"] == "the annotator"
    assert keyed.store.revisions("mine", "final")[0].user == "the annotator"
    (click,) = keyed.store.events("mine")
    assert (click.user, click.client_id) == ("the annotator", "c")


def test_keeping_a_prediction_needs_the_role_that_saving_a_label_needs(keyed: Served, keys: dict[Role, str]):
    for role, status in ((USER, 403), (ANNOTATOR, 200)):
        answer = keyed.infer(
            "image=ct_a&output=json", {"save_label": True}, headers={"Authorization": f"Bearer {keys[role]}"}
        )
        assert answer.status_code == status


def test_nobody_can_make_the_server_take_a_body_in_before_the_key_was_checked(keyed: Served):
    with socket.create_connection(keyed.address, timeout=10) as wire:
        wire.sendall(
            b"PUT /datastore/ HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
        )
        assert wire.recv(4096).startswith(b"HTTP/1.1 401")


def test_without_keys_there_is_nothing_to_sign_in_to_and_everyone_is_admin(gateway: Served):
    assert gateway.get("/auth/").status_code == 404
    assert gateway.get("/auth/token/valid").status_code == 404
    assert gateway.post("/reload").json() == {}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1@evil"])
def test_without_keys_only_this_machine_is_a_host(gateway: Served, host: str):
    answer = gateway.get("/info/", headers={"Host": host})
    assert answer.status_code == 400
    assert "--auth token" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_this_machine_has_several_names(gateway: Served, host: str):
    assert gateway.get("/info/", headers={"Host": host}).status_code == 200


def test_with_keys_any_host_is_answered(keyed: Served, keys: dict[Role, str]):
    headers = {"Host": "gpu.hospital.example", "Authorization": f"Bearer {keys[USER]}"}
    assert keyed.get("/info/", headers=headers).status_code == 200
