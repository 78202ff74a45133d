"""The advice to a training that finds no room on the cluster."""

from __future__ import annotations

import pytest

from actors.placement import advice, replicas_beside
from actors.trainer import scaling

WORKER = {"CPU": 1.0, "GPU": 0.51}


def test_a_worker_that_finds_room_hears_nothing():
    assert advice(WORKER, free=[{"CPU": 1.0, "GPU": 0.6}], whole=[{"CPU": 4.0, "GPU": 1.0}]) is None


def test_room_on_two_nodes_together_is_no_room():
    nodes = [{"CPU": 4.0, "GPU": 0.3}, {"CPU": 4.0, "GPU": 0.3}]
    text = advice(WORKER, free=nodes, whole=[{"CPU": 4.0, "GPU": 1.0}] * 2)
    assert "a worker needs 1 CPU and 0.51 GPU" in text
    assert "0.3 GPU, 4 CPU left" in text
    assert "replica_gpus" in text


@pytest.mark.parametrize("nodes", [[], [{"CPU": 4.0}], [{"CPU": 0.0, "GPU": 1.0}]])
def test_a_cluster_without_any_node_that_is_large_enough_says_so(nodes):
    assert "no node is large enough" in advice(WORKER, free=nodes, whole=nodes)


@pytest.mark.parametrize("cluster", [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}])
def test_what_a_training_asks_for_fits_on_a_node_of_its_own(cluster):
    worker = scaling({}, cluster).resources_per_worker
    assert advice(worker, free=[cluster], whole=[cluster]) is None


@pytest.mark.parametrize(
    ("most", "asked", "node", "nodes", "beside"),
    [
        (8, {"CPU": 1.0, "GPU": 0.4}, {"CPU": 8.0, "GPU": 1.0}, 8, 1),  # a GPU on each of eight nodes
        (8, {"CPU": 1.0, "GPU": 0.1}, {"CPU": 96.0, "GPU": 8.0}, 1, 8),  # of 32 that fit
        (64, {"CPU": 1.0, "GPU": 0.1}, {"CPU": 96.0, "GPU": 8.0}, 3, 32),
        (8, {"CPU": 1.0}, {"CPU": 16.0}, 4, 2),
        (4, {"CPU": 1.0}, {"CPU": 4.0}, 1, 4),
        (1, {"CPU": 1.0}, {"CPU": 4.0}, 3, 1),
    ],
)
def test_a_replica_shares_its_node_with_those_that_fit_there_and_not_with_the_clusters(
    most, asked, node, nodes, beside
):
    assert replicas_beside(most, asked=asked, node=node, nodes=nodes) == beside
