"""The gateway's routes for a supervisor, a load balancer and Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from rayapp.datastore.local import LocalDatastore
from tests.gateway.conftest import Serve, Served


def figures(served: Served) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = served.get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def value(served: Served, name: str, **labels: str) -> float:
    return figures(served).get((f"rayapp_{name}", frozenset(labels.items())), 0.0)


def test_a_server_whose_parts_all_answer_is_ready(gateway: Served):
    assert gateway.get("/healthz").json() == {"status": "ok"}
    ready = gateway.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "datastore": "ok", "models": "ok", "jobs": "ok", "inference": "ok"}


def test_what_does_not_answer_is_named(serve: Serve, monkeypatch):
    served = serve()

    def broken(self: LocalDatastore) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(LocalDatastore, "status", broken)
    served.network.ready = False
    ready = served.get("/readyz")
    assert ready.status_code == 503
    said = ready.json()
    assert (said["ready"], said["models"], said["jobs"]) == (False, "ok", "ok")
    assert "OSError" in said["datastore"]
    assert said["inference"] == "no replica has started"
    assert "disk" not in ready.text


def test_health_needs_no_key_and_figures_do(keyed: Served):
    token, keyed.token = keyed.token, None
    try:
        assert keyed.get("/healthz").status_code == 200
        assert keyed.get("/readyz").status_code == 200
        assert keyed.get("/metrics").status_code == 401
    finally:
        keyed.token = token


def test_requests_are_counted_by_their_route_and_never_by_a_name_in_it(gateway: Served):
    labels = {"method": "GET", "route": "/jobs/{job_id}", "status": "404"}
    before = value(gateway, "requests_total", **labels)
    lost = value(gateway, "requests_total", method="GET", route="none", status="404")
    gateway.get("/jobs/somebody")
    gateway.get("/no/such/route/somebody")
    assert value(gateway, "requests_total", **labels) == before + 1
    assert value(gateway, "requests_total", method="GET", route="none", status="404") == lost + 1
    assert "somebody" not in gateway.get("/metrics").text


def test_each_stage_of_a_models_answer_is_counted(gateway: Served):
    before = value(gateway, "infer_seconds_count", model="bright", stage="total")
    assert gateway.infer("image=ct_a").status_code == 200
    after = figures(gateway)
    for stage in ("pre", "infer", "invert", "post", "write", "total"):
        key = ("rayapp_infer_seconds_count", frozenset({("model", "bright"), ("stage", stage)}))
        assert after[key] >= before + 1


def test_images_labels_and_versions_are_what_info_says(gateway: Served):
    info = gateway.get("/info/").json()
    assert value(gateway, "images") == info["datastore"]["total"]
    for tag, count in info["datastore"]["label_tags"].items():
        assert value(gateway, "labels", tag=tag) == count
    version = info["models"]["bright"]["version"]
    assert value(gateway, "model_version_info", model="bright", version=version) == 1
