"""The application follows the nodes of a cluster, and respects what others run on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import name_of
from deployments import application
from deployments.application import GONE_S, Application, settled
from rayapp.config import Settings
from rayapp.errors import RayappError
from rayapp.planner.shares import Node, shares

CPU, GPU = Node(cpus=8), Node(cpus=8, gpus=1, gpu_memory=79 << 30)
SMALL = Node(cpus=8, gpus=1, gpu_memory=15 << 30)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(studies=tmp_path / "studies", workspace=tmp_path, ray_address="auto", host="127.0.0.1", port=8001)


class Cluster:
    """Nodes that come and go, and what was deployed on them."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch, *nodes: Node) -> None:
        self.nodes, self.deployed, self.now = list(nodes), [], 1000.0
        monkeypatch.setattr(application, "nodes", lambda _: dict(enumerate(self.nodes)))
        monkeypatch.setattr(application, "shares_now", lambda _: shares(self.nodes))
        monkeypatch.setattr(application, "inference_deployment", self._deployment)
        monkeypatch.setattr(application, "gateway_deployment", lambda *_: SimpleNamespace(bind=lambda _: 0))
        monkeypatch.setattr(application.serve, "run_many", lambda _, **__: None)
        monkeypatch.setattr(application.serve, "start", lambda **_: None)
        monkeypatch.setattr(application.time, "monotonic", lambda: self.now)
        self.server = Application(settings, datastore=None, models=None, jobs=None)
        self.server.deploy()

    def _deployment(self, _, replica):
        self.deployed.append(dict(replica))
        return SimpleNamespace(bind=lambda *_: 0)


def test_replicas_move_to_the_first_gpu_whenever_it_joins(settings, monkeypatch):
    cluster = Cluster(settings, monkeypatch, CPU)
    assert "GPU" not in cluster.deployed[-1]
    assert not cluster.server.follow(serving=True)
    cluster.nodes.append(GPU)
    assert cluster.server.follow(serving=True)
    assert cluster.deployed[-1]["GPU"] == 0.1
    cluster.nodes.append(GPU)
    assert not cluster.server.follow(serving=True), "what runs stays while it suits"


def test_a_smaller_gpu_that_joins_gets_no_more_replicas_than_it_holds(settings, monkeypatch):
    cluster = Cluster(settings, monkeypatch, GPU)
    cluster.nodes.append(SMALL)
    assert cluster.server.follow(serving=True)
    assert cluster.deployed[-1]["GPU"] == 0.4
    cluster.nodes.remove(SMALL)
    assert not cluster.server.follow(serving=True)


def test_replicas_leave_gpus_only_once_these_are_gone_for_a_while(settings, monkeypatch):
    cluster = Cluster(settings, monkeypatch, CPU, GPU)
    cluster.nodes.remove(GPU)
    assert not cluster.server.follow(serving=True)
    cluster.nodes.append(GPU)
    assert not cluster.server.follow(serving=True)
    cluster.now += GONE_S + 1
    cluster.nodes.remove(GPU)
    assert not cluster.server.follow(serving=True), "it counts from when they are gone"
    cluster.now += GONE_S + 1
    assert cluster.server.follow(serving=True)
    assert "GPU" not in cluster.deployed[-1]


def test_before_anything_serves_the_first_node_decides(settings, monkeypatch):
    cluster = Cluster(settings, monkeypatch)
    assert cluster.deployed == [{"CPU": 1.0}]
    cluster.nodes.append(CPU)
    assert cluster.server.follow(serving=False)
    assert cluster.deployed[-1] == {"CPU": 3.5}
    assert not cluster.server.follow(serving=False)


def serve_with(monkeypatch: pytest.MonkeyPatch, host: str, port: int, **prefixes: str) -> None:
    """A Serve instance with this address and the applications with these route prefixes."""
    details = {"applications": {name: {"route_prefix": prefix} for name, prefix in prefixes.items()}}
    client = SimpleNamespace(http_config=SimpleNamespace(host=host, port=port), get_serve_details=lambda: details)
    monkeypatch.setattr(application, "_get_global_client", lambda **_: client)


def test_the_address_of_a_serve_instance_that_runs_already_counts_and_is_told(settings, monkeypatch, caplog):
    serve_with(monkeypatch, "0.0.0.0", 8500, theirs="/theirs")
    found = settled(settings)
    assert (found.host, found.port) == ("0.0.0.0", 8500)
    assert "host 0.0.0.0 and port 8500" in caplog.text
    serve_with(monkeypatch, settings.host, settings.port)
    assert settled(settings) == settings
    monkeypatch.setattr(application, "_get_global_client", lambda **_: None)
    assert settled(settings) == settings


def test_an_application_of_others_at_the_root_is_not_replaced(settings, monkeypatch):
    serve_with(monkeypatch, settings.host, settings.port, theirs="/")
    with pytest.raises(RayappError, match="'theirs' answers at / "):
        settled(settings)
    serve_with(monkeypatch, settings.host, settings.port, **{name_of("rayapp", settings): "/"})
    assert settled(settings) == settings


def test_only_the_servers_own_application_is_ended_on_a_cluster_of_others(settings, monkeypatch):
    ended = []
    monkeypatch.setattr(application.serve, "delete", ended.append)
    monkeypatch.setattr(application.serve, "shutdown", lambda: ended.append("everything"))
    Application(settings, datastore=None, models=None, jobs=None).delete()
    assert ended == [name_of("rayapp", settings)]


def test_names_carry_the_studies_and_the_workspace(settings, tmp_path):
    others = [settings.model_copy(update={name: tmp_path / "other"}) for name in ("studies", "workspace")]
    assert len({name_of("datastore", each) for each in (settings, *others)}) == 3
    assert name_of("jobs", settings) == name_of("jobs", settings.model_copy(update={"port": 1, "max_queued": 2}))
