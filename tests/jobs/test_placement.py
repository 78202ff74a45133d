"""The advice to a training that finds no room on the cluster."""

from __future__ import annotations

import pytest

from actors.placement import node_of
from actors.trainer import scaling
from rayapp.planner.shares import replicas_on, shares, shortage

WORKER = {"CPU": 1.0, "GPU": 0.51}


def test_a_worker_that_finds_room_hears_nothing():
    assert shortage(WORKER, free=[{"CPU": 1.0, "GPU": 0.6}], whole=[{"CPU": 4.0, "GPU": 1.0}]) is None


def test_room_on_two_nodes_together_is_no_room():
    nodes = [{"CPU": 4.0, "GPU": 0.3}, {"CPU": 4.0, "GPU": 0.3}]
    text = shortage(WORKER, free=nodes, whole=[{"CPU": 4.0, "GPU": 1.0}] * 2)
    assert "a worker needs 1 CPU and 0.51 GPU" in text
    assert "0.3 GPU, 4 CPU left" in text
    assert "replica_gpus" in text


@pytest.mark.parametrize("nodes", [[], [{"CPU": 4.0}], [{"CPU": 0.0, "GPU": 1.0}]])
def test_a_cluster_without_any_node_that_is_large_enough_says_so(nodes):
    assert "no node is large enough" in shortage(WORKER, free=nodes, whole=nodes)


@pytest.mark.parametrize("cluster", [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}, {"CPU": 1.0}])
def test_what_a_training_asks_for_fits_on_a_node_of_its_own(cluster):
    asked = shares([node_of(cluster)])
    worker = scaling({}, asked.training, cluster).resources_per_worker
    assert shortage(worker, free=[cluster], whole=[cluster]) is None
    assert shortage(asked.scorer, free=[cluster], whole=[cluster]) is None


@pytest.mark.parametrize(
    ("asked", "node", "beside"),
    [
        ({"CPU": 1.0, "GPU": 0.4}, {"CPU": 8.0, "GPU": 1.0}, 1),
        ({"CPU": 6.0, "GPU": 0.1}, {"CPU": 192.0, "GPU": 8.0}, 32),
        ({"CPU": 12.0, "GPU": 0.1}, {"CPU": 96.0, "GPU": 8.0}, 8),  # of 32 that the GPUs hold
        ({"CPU": 4.0}, {"CPU": 17.0}, 4),
        ({"CPU": 1.0}, {"CPU": 5.0}, 4),
        ({"CPU": 3.75}, {"CPU": 64.0}, 16),
    ],
)
def test_a_replica_shares_its_node_with_those_that_fit_there_and_not_with_the_clusters(asked, node, beside):
    assert replicas_on(node_of(node), asked) == beside


def test_a_gpus_memory_is_known_by_the_kind_that_ray_names():
    found = {kind: node_of({"CPU": 8.0, "GPU": 1.0, f"accelerator_type:{kind}": 1.0}).gpu_memory for kind in KINDS}
    assert {kind: memory and round(memory / (1 << 30), 1) for kind, memory in found.items()} == KINDS


KINDS = {"T4": 15.0, "A10G": 22.5, "L4": 22.5, "A100": 37.5, "GeForce-RTX-4090": 22.5, "H200": 132.2, "Abacus": None}
